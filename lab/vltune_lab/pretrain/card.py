"""Publish clip-compact: fp16 safetensors and a card: how it was made and what it can do."""

import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vltune import __version__
from vltune.files import atomic_path, sha256_file, write_bytes_atomic, write_json_atomic
from vltune_lab.pretrain.clip_evaluation import zero_shot_figures
from vltune_lab.pretrain.recipe import PretrainConfig
from vltune_lab.pretrain.run_state import RunState
from vltune_lab.pretrain.state import PretrainState, build_model
from vltune_lab.scenes.library import (
    FEDERATION_STYLES,
    PACKAGED_ASSETS,
    PRETRAINING_STYLES,
    SHIFTED_STYLES,
    load_library,
)

WEIGHTS = "open_clip_model.safetensors"


def publish(
    state: PretrainState,
    config: PretrainConfig,
    folder: Path,
    device: str,
    *,
    num_images: int = 2000,
    history: str = "one run of the recipe",
) -> dict[str, Any]:
    """Write weights (fp16), measure them as they will be loaded, write card.json and README.md.

    Args:
        state: Trained state.
        config: Its recipe.
        folder: Model folder; holds open_clip_config.json.
        device: Where it was trained, for the card.
        history: What a reader must know of the run beside its recipe, such as a change of schedule.
        num_images: Scenes of each group of styles to measure on.

    Returns:
        The card.
    """
    write_half(state.model.state_dict(), folder / WEIGHTS)
    card = {
        **run_facts(state, folder / WEIGHTS, device),
        "command": "vltune pretrain clip",
        "history": history,
        "zero_shot": measure(folder, config.seed, num_images),
    }
    write_json_atomic(folder / "card.json", card)
    write_bytes_atomic(folder / "README.md", card_text(card).encode())
    return card


def write_half(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as fp16 safetensors."""
    # Counters stay integers: batch norm's would be infinite in fp16 after 65,504 steps.
    half = {
        name: (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for name, value in state.items()
    }
    with atomic_path(path) as temporary:
        save_file(half, temporary, metadata={"format": "pt"})


def run_facts(
    state: RunState, weights: Path, device: str, *, images_seen: int | None = None
) -> dict[str, Any]:
    """What every card says: weights, data, recipe, schedule, hardware.

    Args:
        state: Its recipe has `batch_size`, unless images_seen is given.
        weights: The published file; its folder gives the model's name.
        device: Where it was trained.
        images_seen: Where it is not steps times batch.
    """
    if images_seen is None:
        images_seen = state.step * state.recipe["batch_size"]
    backgrounds = PACKAGED_ASSETS / "backgrounds" / "manifest.json"
    return {
        "name": weights.parent.name,
        "licence": "Apache-2.0",
        "version": __version__,
        "weights": {
            "file": weights.name,
            "sha256": sha256_file(weights),
            "dtype": "float16",
            "bytes": weights.stat().st_size,
        },
        "data": {
            "what": "scenes of the embedded world, rendered while training; "
            "no photograph of a person, no web data",
            "styles": list(PRETRAINING_STYLES),
            "sprites_manifest_sha256": sha256_file(PACKAGED_ASSETS / "sprites" / "manifest.json"),
            "backgrounds_manifest_sha256": sha256_file(backgrounds),
            "images_seen": images_seen,
        },
        "recipe": state.recipe,
        "steps": state.step,
        "schedule": [{"from_step": first, "steps": steps} for first, steps in state.schedule],
        "hardware": f"{device}, {platform.processor() or platform.machine()}, "
        f"{torch.get_num_threads()} threads, fp32"
        if device == "cpu"
        else torch.cuda.get_device_name(),
        "training_seconds": round(state.seconds),
        "torch": torch.__version__,
    }


def measure(folder: Path, seed: int, num_images: int = 2000) -> dict[str, Any]:
    """Zero-shot figures of the published weights, by group of styles."""
    from safetensors.torch import load_file

    model, tokenizer = build_model(folder, seed)
    model.load_state_dict({name: value.float() if value.is_floating_point() else value
                           for name, value in load_file(folder / WEIGHTS).items()})  # fmt: skip
    library = load_library()
    groups = {
        "pretraining": PRETRAINING_STYLES,
        "federation": FEDERATION_STYLES,
        "shifted": SHIFTED_STYLES,
    }
    return {
        name: asdict(
            zero_shot_figures(
                model, tokenizer, library, styles, num_images=num_images, seed=seed + 1,
                drawings="all" if name == "pretraining" else "held_out",
            )
        )
        for name, styles in groups.items()
    }  # fmt: skip


def card_text(card: dict[str, Any]) -> str:
    """The card as Markdown."""
    rows = "\n".join(
        f"| {name} | {figures['pooled_mAP']:.3f} | {figures['patch_mAP']:.3f} "
        f"| {figures['pointing']:.3f} | {figures['num_images']} | {figures['num_classes']} |"
        for name, figures in card["zero_shot"].items()
    )
    return f"""# {card["name"]}

A compact CLIP for the embedded world of VLTune: a vision transformer behind a convolutional stem
(64 px, stride 8), a causal text transformer with CLIP's tokenizer, patch tokens in the joint space.
It is for demonstration, tests and benchmarks on drawn scenes; it knows nothing of photographs.
Licence: {card["licence"]}.

Zero-shot on unseen scenes ("a photo of a CLASS."), mAP and share of objects whose class's highest
patch lies in the object's box:

| styles | mAP pooled | mAP patches | pointing | images | classes |
|---|---|---|---|---|---|
{rows}

The federation and shifted styles were never seen in pre-training; their figures use held-out
drawings and backgrounds.

- Data: {card["data"]["images_seen"]:,} rendered images of the styles
  {", ".join(card["data"]["styles"])}.
- Recipe: {card["steps"]:,} steps, seed {card["recipe"]["seed"]},
  batch {card["recipe"]["batch_size"]}, AdamW {card["recipe"]["learning_rate"]};
  terms and weights in `card.json`.
- Hardware: {card["hardware"]}; {card["training_seconds"] / 60:.0f} minutes of training steps.
- Weights: `{card["weights"]["file"]}`, {card["weights"]["bytes"] / 1e6:.1f} MB,
  sha256 `{card["weights"]["sha256"]}`.
- Made by: `{card["command"]}` (resumable; the recipe is in `card.json`).
- History: {card["history"]}.
"""
