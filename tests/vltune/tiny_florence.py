"""A Florence-2 of a few thousand random weights with florence2-compact's own tokenizer."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import Florence2Config, Florence2ForConditionalGeneration

COMPACT = Path(__file__).parents[2] / "assets" / "florence2-compact"
FILES = ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
TEXT = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "init_std": 0.3,
}
VISION = {
    "embed_dim": [8, 8, 16],
    "depths": [1, 1, 1],
    "num_groups": [1, 1, 1],
    "num_heads": [1, 1, 1],
    "projection_dim": 16,
    "initializer_range": 0.3,
}


def write_tiny_florence(folder: Path, seed: int = 0) -> Path:
    """Write config, tokenizer, preprocessing and seeded weights; returns the folder."""
    folder.mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(COMPACT / name, folder / name)
    values: dict[str, Any] = json.loads((COMPACT / "config.json").read_text())
    values["text_config"] |= TEXT
    values["vision_config"] |= VISION
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Florence2ForConditionalGeneration(Florence2Config(**values))
    model.save_pretrained(folder)
    return folder
