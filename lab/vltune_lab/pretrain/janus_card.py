"""Publish janus-compact: fp16 safetensors and a card: how it was made and what it can do."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from vltune.backbones.center_detector import load_compact_judge
from vltune.backbones.checkpoint import BackboneConfig
from vltune.backbones.janus import JanusBackbone, load_janus
from vltune.backbones.janus_pixels import decode_codes
from vltune.files import atomic_path, write_bytes_atomic, write_json_atomic
from vltune.geneval_prompts import TAGS
from vltune_lab.pretrain.card import run_facts, write_half
from vltune_lab.pretrain.drawing_evaluation import drawing_card, drawing_figures
from vltune_lab.pretrain.florence2_evaluation import measured_split
from vltune_lab.pretrain.janus import JanusRun, normalise_pixels
from vltune_lab.pretrain.judge_evaluation import draw_pictures
from vltune_lab.pretrain.picture_grid import grid
from vltune_lab.pretrain.pixel_tokenizer import psnr
from vltune_lab.pretrain.question_card import measure_questions, question_table
from vltune_lab.scenes.geneval_prompts import FIRST_CLASSES, make_prompts
from vltune_lab.scenes.library import PACKAGED_ASSETS, PRETRAINING_STYLES, load_library
from vltune_lab.scenes.plan import plan_scene, scene_rng
from vltune_lab.scenes.render import render_scene

WEIGHTS = "model.safetensors"
JUDGE = PACKAGED_ASSETS / "judge-compact"
MOST_BYTES = 40_000_000
BLOCK = 64


def publish(
    state: JanusRun,
    folder: Path,
    work: Path,
    device: str,
    *,
    num_images: int = 1000,
    per_tag: int = 100,
    history: str = "one run of each stage's recipe",
) -> dict[str, Any]:
    """Write weights (fp16), measure them as they will be loaded, write card.json and README.md.

    Args:
        state: Of the last stage.
        folder: Model folder; holds config.json, vltune_janus.json, tokenizer and preprocessing.
        work: Folder of all stages; their recipes and times go into the card.
        device: Where it was trained, for the card.
        num_images: Scenes of each group of styles to measure on.
        per_tag: Prompts of each family to draw.
        history: What a reader must know of the run beside its recipes.

    Returns:
        The card.

    Raises:
        ValueError: The file is too large for the repository.
    """
    # transformers decides which of the tied tensors are written.
    with tempfile.TemporaryDirectory() as name:
        state.model.save_pretrained(name)
        write_half(load_file(Path(name) / WEIGHTS), folder / WEIGHTS)
    if (folder / WEIGHTS).stat().st_size > MOST_BYTES:
        raise ValueError(f"{folder / WEIGHTS}: larger than {MOST_BYTES} bytes")
    seed = state.recipe["seed"]
    backbone = load_janus(BackboneConfig(folder.name, str(folder)))
    seen = state.step * state.recipe["drawing_batch"]
    seen += max(0, state.step - state.recipe["reading_from"]) * state.recipe["reading_batch"]
    card = {
        **run_facts(state, folder / WEIGHTS, device, images_seen=seen),
        "command": "vltune pretrain janus",
        "history": history,
        "stages": {name: stage_facts(work / name) for name in ("tokenizer", "decoder", "vision")},
        "pixels": measure_pixels(backbone, seed, num_images),
        "questions": measure_questions(backbone, seed, num_images),
        "drawing": measure_drawing(backbone, seed, per_tag),
    }
    write_json_atomic(folder / "card.json", card)
    write_bytes_atomic(folder / "README.md", card_text(card).encode())
    with atomic_path(folder / "drawn.png") as temporary:
        Image.fromarray(sample_grid(backbone, seed)).save(temporary, format="png")
    return card


def stage_facts(work: Path) -> dict[str, Any]:
    """Recipe, steps and seconds of a stage's checkpoint; empty where the stage was not run."""
    path = work / "checkpoint.pt"
    if not path.is_file():
        return {}
    content = torch.load(path, map_location="cpu", weights_only=True)
    return {
        "recipe": content["recipe"],
        "steps": content["step"],
        "training_seconds": round(content["seconds"]),
        "schedule": content["schedule"],
    }


def measure_pixels(backbone: JanusBackbone, seed: int, num_images: int) -> dict[str, Any]:
    """Reconstruction of unseen scenes and of pictures of prompts, and the codes that they use."""
    library = load_library(styles=PRETRAINING_STYLES)
    split = measured_split(PRETRAINING_STYLES, "all")
    scenes = []
    for index in range(num_images):
        rng = scene_rng(seed + 1, split.name, index)
        plan = plan_scene(library, split, rng, 0.0)
        size = backbone.image_size[0]
        scenes.append(render_scene(library, plan, size, rng, is_held_out=True).image)
    asked = draw_pictures(
        library, library.classnames, PRETRAINING_STYLES,
        per_tag=max(1, num_images // len(TAGS)), seed=seed + 1,
    )  # fmt: skip
    groups = {
        "scenes": normalise_pixels(torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2)),
        "prompts": asked.images * 2 - 1,
    }
    return {name: _reconstruction(backbone, pixels) for name, pixels in groups.items()}


def _reconstruction(backbone: JanusBackbone, pixels: Tensor) -> dict[str, Any]:
    vq, shuffle = backbone._janus.model.vqmodel, backbone.settings.pixel_shuffle
    codes = torch.cat([backbone.encode_targets(part) for part in pixels.split(BLOCK)])
    images = torch.cat([decode_codes(vq, part, shuffle) for part in codes.split(BLOCK)])
    return {
        "psnr_db": round(psnr(images * 2 - 1, pixels), 2),
        "codes_used": len(codes.unique()),
        "codes": vq.quantize.num_embeddings,
        "num_images": len(pixels),
    }


def measure_drawing(backbone: JanusBackbone, seed: int, per_tag: int) -> dict[str, Any]:
    """GenEval-style figures by tier of vocabulary; empty while there is no judge."""
    if not (JUDGE / "config.json").is_file():
        return {}
    judge, library = load_compact_judge(JUDGE), load_library(styles=PRETRAINING_STYLES)
    tiers = {"12 classes": FIRST_CLASSES, "all classes": library.classnames}
    result = {}
    for tier, names in tiers.items():
        truth = draw_pictures(library, names, PRETRAINING_STYLES, per_tag=per_tag, seed=seed + 1)
        result[tier] = drawing_card(drawing_figures(backbone, judge, truth, seed=seed))
    return result


def sample_grid(backbone: JanusBackbone, seed: int, per_tag: int = 8) -> np.ndarray:
    """A row of drawn pictures for each family of prompts of the first tier."""
    prompts = [
        prompt.prompt
        for tag in TAGS
        for prompt in make_prompts(FIRST_CLASSES, per_tag=per_tag, seed=seed, tags=(tag,))
    ]
    generator = torch.Generator().manual_seed(seed)
    return grid(backbone.generate_images(prompts, generator=generator), per_tag)


def card_text(card: dict[str, Any]) -> str:
    """The card as Markdown."""
    recipe, stages, pixels = card["recipe"], card["stages"], card["pixels"]
    seconds = card["training_seconds"] + sum(
        stage.get("training_seconds", 0) for stage in stages.values()
    )
    return f"""# {card["name"]}

A compact Janus for the embedded world of VLTune: transformers' own class, a vision transformer
(64 px, 64 image tokens), a LLaMA of four layers, a pixel tokenizer of 8 x 8 codes. It answers short
questions about drawn scenes and draws pictures of short prompts; it is for demonstration, tests and
benchmarks, and knows nothing of photographs. Licence: {card["licence"]}.

Pixel tokenizer, unseen pictures: {pixels["scenes"]["psnr_db"]:.1f} dB on scenes,
{pixels["prompts"]["psnr_db"]:.1f} dB on pictures of prompts; {pixels["scenes"]["codes_used"]} of
{pixels["scenes"]["codes"]} codes in use.

{drawing_table(card["drawing"])}

Exact match on unseen scenes by kind of question, greedy decoding:

{question_table(card["questions"])}

- Data: {card["data"]["images_seen"]:,} rendered images of the styles
  {", ".join(card["data"]["styles"])} in the last stage, besides those before.
- Recipe: {card["steps"]:,} steps of the last stage, seed {recipe["seed"]}, AdamW
  {recipe["learning_rate"]}; before it {stages["tokenizer"].get("steps", 0):,} steps of the pixel
  tokenizer, {stages["decoder"].get("steps", 0):,} of its decoder alone and
  {stages["vision"].get("steps", 0):,} of the vision tower, which began with
  clip-compact's blocks. The word table began as florence2-compact's. All recipes in `card.json`.
- Hardware: {card["hardware"]}; {seconds / 60:.0f} minutes of training steps.
- Weights: `{card["weights"]["file"]}`, {card["weights"]["bytes"] / 1e6:.1f} MB,
  sha256 `{card["weights"]["sha256"]}`.
- Made by: `{card["command"]} --stage ...` (resumable; docs/janus.md).
- History: {card["history"]}.
"""


def drawing_table(drawing: dict[str, Any]) -> str:
    """Drawn pictures as a share of what the judge gives true ones, as a Markdown table."""
    if not drawing:
        return (
            "Whether its pictures follow their prompts has not been measured: there was no judge."
        )
    kinds = next(iter(drawing.values()))["share"]
    rows = [
        f"| {tier} | {key} | " + " | ".join(f"{figures[key][kind]:.3f}" for kind in kinds) + " |"
        for tier, figures in drawing.items()
        for key in ("generated", "true_pictures", "share")
    ]
    return "\n".join(
        [
            "Share of pictures that the judge (`judge-compact`) calls right, of true pictures of",
            "the same prompts, and the first as a share of the second:",
            "",
            f"| vocabulary | pictures | {' | '.join(kinds)} |",
            f"|---|---|{'---|' * len(kinds)}",
            *rows,
        ]
    )
