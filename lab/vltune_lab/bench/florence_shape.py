"""Benchmark `florence-shape`: a LoRA step on Florence-2-base's shape, with random weights.

No checkpoint can be fetched everywhere, and time, memory and bytes do not depend on the values. The
step from kept image tokens is compared with one that runs the frozen vision tower each time. The
tokenizer is florence2-compact's: its ids are a part of the vocabulary.
"""

import json
import resource
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vltune.backbones.florence2 import Florence2Backbone, backbone_of
from vltune.backbones.florence2_checkpoint import Florence2Parts
from vltune.lora import add_lora, read_factors
from vltune.lora_factors import LoraSettings
from vltune.lora_modes import MODES
from vltune.parameters import spec_of
from vltune.training import TrainingConfig, make_optimizer
from vltune_lab.bench.timing import speed_row, time_pair

COMPACT = Path(__file__).parents[3] / "assets" / "florence2-compact"
# Florence-2-base as published (arXiv 2311.06242, table 10), by transformers' names.
TEXT = {
    "d_model": 768,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_attention_heads": 12,
    "decoder_attention_heads": 12,
    "encoder_ffn_dim": 3072,
    "decoder_ffn_dim": 3072,
    "vocab_size": 51289,
    "max_position_embeddings": 4096,
}
VISION = {
    "embed_dim": [128, 256, 512, 1024],
    "depths": [1, 1, 9, 1],
    "num_heads": [4, 8, 16, 32],
    "num_groups": [4, 8, 16, 32],
    "patch_size": [7, 3, 3, 3],
    "patch_stride": [4, 2, 2, 2],
    "patch_padding": [3, 1, 1, 1],
    "patch_prenorm": [False, True, True, True],
    "window_size": 12,
    "projection_dim": 768,
    "max_position_embeddings": 50,
    "max_temporal_embeddings": 100,
}
RANK, ALPHA = 8, 16.0
BATCH, REPEATS = 2, 5
PROMPT, ANSWER = "What does the image describe?", "a red bus in front of a grey wall"


def run_florence_shape(quick: bool = False) -> list[dict[str, Any]]:
    """One row: the step with the tower and from kept tokens, memory of the process, adapter bytes.

    Args:
        quick: Small images, to see that it runs.
    """
    side = 128 if quick else 768
    backbone = make_backbone(side)
    settings = LoraSettings(RANK, ALPHA, backbone.lora_scope)
    lora = add_lora(backbone.model, settings, 0, allowed=backbone.lora_scope)
    parameters = [p for p in lora.parameters() if p.requires_grad]
    # A learning rate of next to nothing: every repeat does the same step.
    optimizer = make_optimizer(parameters, TrainingConfig(learning_rate=1e-30))
    images = torch.randn(BATCH, 3, side, side, generator=torch.Generator().manual_seed(0))
    kept = backbone.encode_images(images)

    def step(tokens: Tensor) -> list[Tensor]:
        loss = backbone.loss(tokens, [PROMPT] * BATCH, [ANSWER] * BATCH).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return [loss.detach()]

    pair = time_pair(lambda: step(backbone.encode_images(images)), lambda: step(kept), REPEATS)
    spec = spec_of(read_factors(lora))
    name = "LoRA step on Florence-2-base's shape: tower in every step, or kept image tokens"
    setting = f"batch {BATCH}, {side} px, {kept.shape[1]} image tokens, rank {RANK}, fp32"
    return [
        speed_row(name, setting, pair)
        | {
            "parameters": sum(p.numel() for p in lora.parameters()),
            "trainable": sum(p.numel() for p in parameters),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
            **{f"bytes_{mode}": MODES[mode].upload_bytes(spec) for mode in ("fedavg", "plora")},
        }
    ]


def make_backbone(side: int) -> Florence2Backbone:
    """Florence-2-base's architecture with random weights, for square images."""
    from transformers import AutoTokenizer, Florence2Config, Florence2ForConditionalGeneration

    values: dict[str, Any] = json.loads((COMPACT / "config.json").read_text())
    values["text_config"] |= TEXT
    values["vision_config"] |= VISION
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Florence2ForConditionalGeneration(Florence2Config(**values))
    processor = json.loads((COMPACT / "preprocessor_config.json").read_text())
    processor["size"] = {"height": side, "width": side}
    tokenizer = AutoTokenizer.from_pretrained(COMPACT)
    parts = Florence2Parts(model, tokenizer, processor, str(COMPACT))
    return backbone_of("florence2-base-shape", parts, model.eval().requires_grad_(False))
