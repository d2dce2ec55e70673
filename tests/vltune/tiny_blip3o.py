"""A BLIP3-o of a few thousand random weights with florence2-compact's tokenizer."""

from pathlib import Path

import torch

from vltune.backbones.blip3o_checkpoint import read_tokenizer, write_folder
from vltune.backbones.blip3o_config import (
    Blip3oSettings,
    DecoderSettings,
    FlowSettings,
    GenerationSettings,
    TowerSettings,
)
from vltune.backbones.blip3o_model import Blip3oModel

COMPACT = Path(__file__).parents[2] / "assets" / "florence2-compact"

TINY = Blip3oSettings(
    vision=TowerSettings(
        kind="timm",
        settings={
            "name": "vit_tiny_patch16_224",
            "img_size": 16,
            "patch_size": 4,
            "embed_dim": 8,
            "depth": 1,
            "num_heads": 2,
        },
        image_size=16,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        num_tokens=16,
        width=8,
    ),
    language={
        "vocab_size": 2048,
        "hidden_size": 20,
        "intermediate_size": 28,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "initializer_range": 0.6,
    },
    num_queries=3,
    flow=FlowSettings(width=12, depth=2, num_heads=3, ffn_width=14, modulation_width=10),
    decoder=DecoderSettings(channels=(16, 8), shuffle=2),
    max_prompt_tokens=24,
    max_answer_tokens=16,
    merge=2,
    generation=GenerationSettings(guidance=2.0, steps=5),
)


def make_tiny_blip3o(seed: int = 0, settings: Blip3oSettings = TINY) -> Blip3oModel:
    """Seeded weights; the flow's zero start is left, so that it draws something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Blip3oModel(settings)
        flow = model.flow_transformer
        with torch.no_grad():
            for name, value in flow.named_parameters():
                if "modulation" in name or name.startswith("out_proj"):
                    value.normal_(std=0.5)
            model.feature_mean.normal_()
            model.feature_std.uniform_(0.5, 2.0)
    return model.eval().requires_grad_(False)


def write_tiny_blip3o(folder: Path, seed: int = 0) -> Path:
    """Write the whole folder in fp32; returns it."""
    folder.mkdir(parents=True)
    tokenizer = read_tokenizer(COMPACT / "tokenizer.json")
    write_folder(folder, make_tiny_blip3o(seed), tokenizer, torch.float32)
    return folder
