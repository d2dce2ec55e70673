"""A Janus of a few thousand random weights with janus-compact's own tokenizer and layout."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import JanusConfig, JanusForConditionalGeneration

COMPACT = Path(__file__).parents[2] / "assets" / "janus-compact"
FILES = (
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vltune_janus.json",
)
SIDE = 24
TEXT = {
    "hidden_size": 24,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 60,
}
VISION = {
    "hidden_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
    "projection_dim": 24,
    "num_image_tokens": 9,
}
PIXELS = {
    "embed_dim": 5,
    "num_embeddings": 37,
    "latent_channels": 7,
    "base_channels": 32,
    "num_patches": 3,
    "projection_dim": 22,
    "image_token_embed_dim": 24,
}


def write_tiny_janus(folder: Path, seed: int = 0) -> Path:
    """Write config, tokenizer, preprocessing and seeded weights; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(COMPACT / name, folder / name)
    values: dict[str, Any] = json.loads((COMPACT / "config.json").read_text())
    values["text_config"] |= TEXT
    values["vision_config"] |= VISION
    values["vq_config"] |= PIXELS
    # The code embeddings' aligner ends at the language model's width.
    values["vq_config"]["projection_dim"] = TEXT["hidden_size"]
    preprocessor = json.loads((COMPACT / "preprocessor_config.json").read_text())
    preprocessor["size"] = {"height": SIDE, "width": SIDE}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = JanusForConditionalGeneration(JanusConfig(**values))
        with torch.no_grad():
            for name, value in model.named_parameters():
                # At transformers' deviation of 0.02 every answer would be the same.
                if value.ndim > 1:
                    value.mul_(20 if "norm" not in name else 1)
            words = model.get_input_embeddings().weight
            words.mul_(0.3)
            words[values["text_config"]["pad_token_id"]].normal_()
    model.save_pretrained(folder)
    return folder
