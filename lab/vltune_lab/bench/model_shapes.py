"""Benchmark `traffic`: bytes a site sends a round, all weights or LoRA's factors.

Models are built on torch's meta device, which has shapes but no values, so that 8 billion
parameters cost nothing. *Full fine-tuning* sends every parameter that it would train: vision towers
and pixel decoders stay frozen in either case and are left out, which flatters it. LoRA's bytes are
those of a message as FLARE serialises it. Where a compact model's weights are at hand, a round of a
real federation is measured beside it (`wire_traffic`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vltune.backbones.blip3o import LORA_SCOPE as BLIP3O_SCOPE
from vltune.backbones.blip3o_config import Blip3oSettings
from vltune.backbones.blip3o_model import Blip3oModel
from vltune.backbones.blip3o_published import ASSUMED, PUBLISHED
from vltune.backbones.blip_vqa import LORA_SCOPE as BLIP_VQA_SCOPE
from vltune.backbones.janus import ATTENTION_SCOPE
from vltune.config import ConfigError, read_mapping
from vltune.flare.exchange import payload_bytes, task_message
from vltune.lora import target_modules
from vltune.lora_factors import LoraSettings, factor_name
from vltune_lab.bench.wire_traffic import measure_exchange
from vltune_lab.pretrain.blip3o_recipe import COMPACT
from vltune_lab.scenes.library import PACKAGED_ASSETS

RANK, ALPHA = 16, 32.0
"""FedUMM's LoRA (arXiv 2601.15390)."""
JANUS_ASSUMED = "dimensions as published, not from a checkpoint"
_JANUS_SIZES: dict[str, dict[str, int]] = {
    "Janus-Pro-1B": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
                     "num_attention_heads": 16, "num_key_value_heads": 16},
    "Janus-Pro-7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 30,
                     "num_attention_heads": 32, "num_key_value_heads": 32},
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A model to count.

    Attributes:
        name: As published.
        build: Makes it, on the meta device.
        scope: Modules for LoRA.
        frozen: Beginnings of names that no one trains.
        assumed: What of its dimensions is not known for sure; empty where all is.
    """

    name: str
    build: Callable[[], nn.Module]
    scope: str
    frozen: tuple[str, ...]
    assumed: str = ""


def _blip3o(name: str, settings: Blip3oSettings, assumed: str = "") -> Shape:
    frozen = ("vision_tower.", "feature_decoder.")
    return Shape(name, lambda: Blip3oModel(settings), BLIP3O_SCOPE, frozen, assumed)


def _janus(name: str) -> Shape:
    def build() -> nn.Module:
        from transformers import JanusConfig, JanusForConditionalGeneration

        text: dict[str, Any] = {"model_type": "llama", "vocab_size": 102400, **_JANUS_SIZES[name]}
        width = text["hidden_size"]
        config = JanusConfig(
            text_config=text,
            vision_config={"projection_dim": width},
            vq_config={"projection_dim": width, "image_token_embed_dim": width},
            tie_word_embeddings=False,
        )
        return JanusForConditionalGeneration(config)

    frozen = ("model.vision_model.", "model.vqmodel.")
    return Shape(name, build, ATTENTION_SCOPE, frozen, JANUS_ASSUMED)


def _janus_compact() -> Shape:
    def build() -> nn.Module:
        from transformers import JanusConfig, JanusForConditionalGeneration

        values = read_mapping(PACKAGED_ASSETS / "janus-compact" / "config.json")
        return JanusForConditionalGeneration(JanusConfig.from_dict(values))

    frozen = ("model.vision_model.", "model.vqmodel.")
    return Shape("janus-compact", build, ATTENTION_SCOPE, frozen)


def _blip_vqa() -> Shape:
    def build() -> nn.Module:
        from transformers import BlipConfig, BlipForQuestionAnswering

        return BlipForQuestionAnswering(BlipConfig())

    return Shape("blip-vqa-base", build, BLIP_VQA_SCOPE, ("vision_model.",))


SHAPES = (
    _blip3o("blip3o-compact", COMPACT),
    _janus_compact(),
    _blip_vqa(),
    _janus("Janus-Pro-1B"),
    _janus("Janus-Pro-7B"),
    *(_blip3o(name, settings, ASSUMED) for name, settings in PUBLISHED.items()),
)


def run_traffic(
    shapes: tuple[Shape, ...] = SHAPES, exchanged: Mapping[str, Path] | None = None
) -> list[dict[str, Any]]:
    """One row a model: bytes up of a site and round, in both ways, fp32 and fp16.

    Args:
        shapes: The models.
        exchanged: Model -> folder of its weights, with which a round is really run.

    Raises:
        ConfigError: `exchanged` names a model that is none of `shapes`.
    """
    unknown = sorted(set(exchanged or {}) - {shape.name for shape in shapes})
    if unknown:
        raise ConfigError(
            f"--exchange: {', '.join(unknown)} is no model of this table; known: "
            f"{', '.join(shape.name for shape in shapes)}"
        )
    rows = []
    for shape in shapes:
        row = traffic_row(shape)
        if exchanged and shape.name in exchanged:
            row |= measure_exchange(
                shape.name, exchanged[shape.name], target=shape.scope, rank=RANK, alpha=ALPHA
            )
        rows.append(row)
    return rows


def traffic_row(shape: Shape) -> dict[str, Any]:
    """Count one model; `baseline` and `ours` are fp32 bytes."""
    with torch.device("meta"):
        model = shape.build()
    parts = count_parts(model)
    total = sum(parts.values())
    trained = sum(
        value.numel()
        for name, value in model.named_parameters()
        if not name.startswith(shape.frozen)
    )
    spec = factor_shapes(model, shape.scope)
    count = sum(rows * columns for rows, columns in spec.values())
    wire = wire_bytes(spec)
    return {
        "name": shape.name,
        "baseline": 4 * trained,
        "ours": wire,
        "ratio": 4 * trained / wire,
        "unit": "bytes",
        "max_abs_error": 0.0,
        "rank": RANK,
        "lora_parameters": count,
        "lora_tensors": len(spec),
        "lora_bytes_fp16": 2 * count,
        "full_bytes_fp16": 2 * trained,
        "parameters": total,
        "parameters_full_fine_tuning": trained,
        **{f"parameters_{part}": value for part, value in parts.items()},
        "assumed": shape.assumed or "nothing",
    }


def count_parts(model: nn.Module) -> dict[str, int]:
    """Parameters by part, a shared one once; transformers' outer `model.` is not a part."""
    parts: dict[str, int] = {}
    for name, value in model.named_parameters():
        part = name.removeprefix("model.").partition(".")[0]
        parts[part] = parts.get(part, 0) + value.numel()
    return parts


def factor_shapes(model: nn.Module, scope: str) -> dict[str, tuple[int, int]]:
    """Shapes of LoRA's factors by wire name, as `vltune.lora.add_lora` would make them."""
    shapes = {}
    for name in target_modules(model, LoraSettings(RANK, ALPHA, scope), allowed=scope):
        layer: Any = model.get_submodule(name)
        shapes[factor_name(name, "A")] = (RANK, layer.in_features)
        shapes[factor_name(name, "B")] = (layer.out_features, RANK)
    return shapes


def wire_bytes(spec: dict[str, tuple[int, int]]) -> int:
    """Size of a message with these factors in fp32, as FLARE serialises it."""
    tensors = {name: torch.zeros(shape) for name, shape in spec.items()}
    return payload_bytes(task_message("traffic", 2, tensors, 0, 1))
