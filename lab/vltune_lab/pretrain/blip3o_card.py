"""Publish blip3o-compact: the model folder and a card: how it was made and what it can do."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vltune.backbones.blip3o import Blip3oBackbone, load_blip3o
from vltune.backbones.blip3o_checkpoint import write_folder
from vltune.backbones.checkpoint import BackboneConfig
from vltune.files import write_bytes_atomic, write_json_atomic
from vltune_lab.pretrain.card import run_facts
from vltune_lab.pretrain.florence2 import normalise_pixels
from vltune_lab.pretrain.florence2_evaluation import (
    measured_split,
    question_figures,
    question_set,
)
from vltune_lab.pretrain.run_state import RunState
from vltune_lab.scenes.library import (
    FEDERATION_STYLES,
    PRETRAINING_STYLES,
    SHIFTED_STYLES,
    Library,
    load_library,
)

GROUPS = {
    "pretraining": PRETRAINING_STYLES,
    "federation": FEDERATION_STYLES,
    "shifted": SHIFTED_STYLES,
}


def publish(
    backbone: Blip3oBackbone,
    states: Mapping[str, RunState],
    folder: Path,
    device: str,
    *,
    num_images: int = 1000,
    history: str = "one run of the recipe",
) -> dict[str, Any]:
    """Write the folder (fp16), measure it as it will be loaded, write card.json and README.md.

    Args:
        backbone: Trained.
        states: Of every stage.
        folder: To write.
        device: Where it was trained, for the card.
        num_images: Scenes of each group of styles to measure on.
        history: What a reader must know of the run beside its recipe.

    Returns:
        The card.
    """
    weights = write_folder(folder, backbone.model, backbone.tokenizer)
    stages = {
        name: {
            "recipe": state.recipe,
            "steps": state.step,
            "images_seen": state.step * state.recipe["batch_size"],
            "training_seconds": round(state.seconds),
        }
        for name, state in states.items()
    }
    facts = run_facts(states["drawing"], weights, device)
    facts["data"]["images_seen"] = sum(stage["images_seen"] for stage in stages.values())
    facts["training_seconds"] = sum(stage["training_seconds"] for stage in stages.values())
    card = {
        **{key: facts[key] for key in facts if key not in ("recipe", "steps", "schedule")},
        "stages": stages,
        "command": "vltune pretrain blip3o",
        "history": history,
        **measure(folder, states["drawing"].recipe["seed"], num_images),
    }
    write_json_atomic(folder / "card.json", card)
    write_bytes_atomic(folder / "README.md", card_text(card).encode())
    return card


def measure(folder: Path, seed: int, num_images: int) -> dict[str, Any]:
    """Decibels of decoded features and exact match of answers, by group of styles."""
    backbone = load_blip3o(BackboneConfig(folder.name, str(folder)))
    library = load_library()
    decibels, questions = {}, {}
    for name, styles in GROUPS.items():
        drawings: Any = "all" if name == "pretraining" else "held_out"
        decibels[name] = decoded_decibels(backbone, library, styles, drawings, num_images, seed + 1)
        questions[name] = asdict(
            question_figures(
                backbone, library, styles, num_images=num_images, seed=seed + 1, drawings=drawings
            )
        )
    return {"decoder_decibels": decibels, "questions": questions}


def decoded_decibels(
    backbone: Blip3oBackbone,
    library: Library,
    styles: tuple[str, ...],
    drawings: Any,
    num_images: int,
    seed: int,
) -> float:
    """Mean peak signal-to-noise ratio of images decoded from their own features, dB."""
    split = measured_split(styles, drawings)
    images, _ = question_set(library, split, backbone.image_size[0], num_images, seed)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    ratios = []
    for part in pixels.split(64):
        decoded = backbone.decode_features(backbone.encode_targets(normalise_pixels(part)))
        squared = (decoded.cpu() - part.float() / 255).square().flatten(1).mean(dim=1)
        ratios.append(-10 * squared.log10())
    return float(torch.cat(ratios).mean())


def card_text(card: dict[str, Any]) -> str:
    """The card as Markdown."""
    rows = "\n".join(
        f"| {name} | {card['decoder_decibels'][name]:.1f} "
        f"| {figures['exact_match']['overall']:.3f} | {figures['other_image']['overall']:.3f} "
        f"| {figures['blind']['overall']:.3f} |"
        for name, figures in card["questions"].items()
    )
    stages = "\n".join(
        f"| {name} | {stage['steps']:,} | {stage['images_seen']:,} "
        f"| {stage['training_seconds'] / 60:.0f} |"
        for name, stage in card["stages"].items()
    )
    return f"""# {card["name"]}

A compact BLIP3-o for the embedded world of VLTune: it answers questions about drawn scenes and
draws them. clip-compact's frozen trunk gives 64 features an image; a small language model reads
them; for drawing it writes the condition of a flow transformer over the same features, and a
decoder turns those into 64 pixels. It knows nothing of photographs. Licence: {card["licence"]}.

| styles | decoded from own features, dB | exact match | with another image | blind |
|---|---|---|---|---|
{rows}

The federation and shifted styles were never seen in pre-training; their figures use held-out
drawings.

| stage | steps | images | minutes |
|---|---|---|---|
{stages}

- Data: rendered images of the styles {", ".join(card["data"]["styles"])}.
- Hardware: {card["hardware"]}.
- Weights: `{card["weights"]["file"]}`, {card["weights"]["bytes"] / 1e6:.1f} MB,
  sha256 `{card["weights"]["sha256"]}`.
- Made by: `{card["command"]}` (resumable; the recipe is in `card.json`).
- History: {card["history"]}.
"""
