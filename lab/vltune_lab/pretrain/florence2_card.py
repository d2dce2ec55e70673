"""Publish florence2-compact: fp16 safetensors and a card: how it was made and what it can do."""

import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from vltune.backbones.checkpoint import BackboneConfig
from vltune.backbones.florence2 import load_florence2
from vltune.files import write_bytes_atomic, write_json_atomic
from vltune_lab.pretrain.card import run_facts, write_half
from vltune_lab.pretrain.florence2 import Florence2Run
from vltune_lab.pretrain.question_card import measure_questions, question_table

WEIGHTS = "model.safetensors"


def publish(
    state: Florence2Run,
    folder: Path,
    device: str,
    *,
    num_images: int = 1000,
    history: str = "one run of the recipe",
) -> dict[str, Any]:
    """Write weights (fp16), measure them as they will be loaded, write card.json and README.md.

    Args:
        state: Trained state.
        folder: Model folder; holds config.json, the tokenizer and preprocessor_config.json.
        device: Where it was trained, for the card.
        num_images: Scenes of each group of styles to measure on.
        history: What a reader must know of the run beside its recipe.

    Returns:
        The card.
    """
    # transformers decides which of the tied tensors are written.
    with tempfile.TemporaryDirectory() as name:
        state.model.save_pretrained(name)
        write_half(load_file(Path(name) / WEIGHTS), folder / WEIGHTS)
        settings = (Path(name) / "generation_config.json").read_bytes()
    write_bytes_atomic(folder / "generation_config.json", settings)
    card = {
        **run_facts(state, folder / WEIGHTS, device),
        "command": "vltune pretrain florence2",
        "history": history,
        "questions": measure_questions(
            load_florence2(BackboneConfig(folder.name, str(folder))),
            state.recipe["seed"],
            num_images,
        ),
    }
    write_json_atomic(folder / "card.json", card)
    write_bytes_atomic(folder / "README.md", card_text(card).encode())
    return card


def card_text(card: dict[str, Any]) -> str:
    """The card as Markdown."""
    table = question_table(card["questions"])
    recipe = card["recipe"]
    return f"""# {card["name"]}

A compact Florence-2 for the embedded world of VLTune: transformers' own class, a three-stage DaViT
(64 px, 16 + 1 image tokens), a BART of two and two layers, a byte-level BPE of 2,048 tokens that
can write any text. It answers short questions about drawn scenes and describes them; it is for
demonstration, tests and benchmarks, and knows nothing of photographs. Licence: {card["licence"]}.

Exact match on unseen scenes by kind of question, greedy decoding:

{table}

- Data: {card["data"]["images_seen"]:,} rendered images of the styles
  {", ".join(card["data"]["styles"])}, with {recipe["questions"]} questions each, captions, and
  phrases of other languages to copy (`lab/vltune_lab/pretrain/lexicon.yaml`).
- Recipe: {card["steps"]:,} steps, seed {recipe["seed"]}, batch {recipe["batch_size"]}, AdamW
  {recipe["learning_rate"]}; the first {recipe["grounding_steps"]:,} steps train the vision tower
  alone on where things are. Terms and weights in `card.json`.
- Hardware: {card["hardware"]}; {card["training_seconds"] / 60:.0f} minutes of training steps.
- Weights: `{card["weights"]["file"]}`, {card["weights"]["bytes"] / 1e6:.1f} MB,
  sha256 `{card["weights"]["sha256"]}`.
- Made by: `{card["command"]}` (resumable; the recipe is in `card.json`).
- History: {card["history"]}.
"""
