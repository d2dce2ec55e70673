"""Publish judge-compact: fp16 safetensors, thresholds, and a card with its own accuracy."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from vltune.backbones.center_detector import CONFIG, WEIGHTS, load_compact_judge
from vltune.config import to_mapping
from vltune.files import write_bytes_atomic, write_json_atomic
from vltune_lab.pretrain.card import run_facts, write_half
from vltune_lab.pretrain.judge import JudgeRun
from vltune_lab.pretrain.judge_evaluation import (
    as_card,
    choose_rules,
    draw_pictures,
    judge_figures,
)
from vltune_lab.scenes.geneval_prompts import FIRST_CLASSES
from vltune_lab.scenes.library import (
    FEDERATION_STYLES,
    PRETRAINING_STYLES,
    SHIFTED_STYLES,
    load_library,
)

GROUPS = {
    "pretraining": PRETRAINING_STYLES,
    "federation": FEDERATION_STYLES,
    "shifted": SHIFTED_STYLES,
}
READINGS = {"true pictures": "right", "near misses": "near_miss", "shuffled": "shuffled"}


def publish(
    state: JudgeRun,
    folder: Path,
    device: str,
    *,
    per_tag: int = 100,
    history: str = "one run of the recipe",
) -> dict[str, Any]:
    """Write weights and config, choose thresholds, measure what will be loaded, write the card.

    Args:
        state: Trained state.
        folder: Model folder, made where it is not there.
        device: Where it was trained, for the card.
        per_tag: Pictures of each family and group to measure on.
        history: What a reader must know of the run beside its recipe.

    Returns:
        The card.
    """
    assert state.config is not None
    folder.mkdir(parents=True, exist_ok=True)
    write_half(state.model.state_dict(), folder / WEIGHTS)
    write_json_atomic(folder / CONFIG, to_mapping(state.config))
    library, seed = load_library(), state.recipe["seed"]
    known = PRETRAINING_STYLES + FEDERATION_STYLES
    chosen = choose_rules(
        load_compact_judge(folder),
        draw_pictures(library, library.classnames, known, per_tag=per_tag, seed=seed + 1),
    )
    write_json_atomic(folder / CONFIG, to_mapping(replace(state.config, rules=chosen)))
    card = {
        **run_facts(state, folder / WEIGHTS, device),
        "command": "vltune pretrain judge",
        "history": history,
        "rules": to_mapping(chosen),
        "figures": measure(folder, seed + 2, per_tag),
    }
    card["data"] |= {"styles": list(state.recipe["styles"])}
    write_json_atomic(folder / "card.json", card)
    write_bytes_atomic(folder / "README.md", card_text(card).encode())
    return card


def measure(folder: Path, seed: int, per_tag: int) -> dict[str, dict[str, Any]]:
    """Figures of the published judge by group of styles and tier of vocabulary."""
    judge, library = load_compact_judge(folder), load_library()
    tiers = {"12 classes": FIRST_CLASSES, "all classes": library.classnames}
    return {
        group: {
            tier: as_card(
                judge_figures(
                    judge, draw_pictures(library, names, styles, per_tag=per_tag, seed=seed)
                )
            )
            for tier, names in tiers.items()
        }
        for group, styles in GROUPS.items()
    }


def card_text(card: dict[str, Any]) -> str:
    """The card as Markdown."""
    rows = []
    for group, tiers in card["figures"].items():
        for tier, figures in tiers.items():
            for label, key in READINGS.items():
                values = " | ".join(f"{value:.2f}" for value in figures[key].values())
                rows.append(f"| {group} | {tier} | {label} | {values} |")
    quality = "\n".join(
        f"| {group} | {tier} | {figures['mAP']:.3f} | {figures['F1']:.3f} "
        f"| {figures['colour']:.3f} | {figures['pictures']} |"
        for group, tiers in card["figures"].items()
        for tier, figures in tiers.items()
    )
    table = "\n".join(rows)
    families = "single | two | counting | colours | position | colour attribution | overall"
    recipe = card["recipe"]
    return f"""# {card["name"]}

The judge of generated pictures of VLTune's embedded world: a small convolutional detector that
finds objects by their middles (64 px; class, box and colour). It shares nothing with the generators
that it judges. It is for drawn scenes and knows nothing of photographs. Licence: {card["licence"]}.

Share of pictures that it calls right, by family of GenEval prompts. Near misses are wrong in one
thing: another class, number or colour, the opposite side, colours swapped. Shuffled: tiles of 16
pixels of the true pictures in another order.

| styles | vocabulary | pictures | {families} |
|---|---|---|{"---|" * 7}
{table}

As a detector on the true pictures, at 0.5 IoU; "colour" is the share of found objects whose colour
it names as the world does:

| styles | vocabulary | mAP | F1 | colour | pictures |
|---|---|---|---|---|---|
{quality}

Pictures are new and most backgrounds unseen; the drawings of the pre-training and federation styles
are those of the training (a judge must know what may be drawn). The shifted style was never seen.

- Rules, chosen on other pictures: confidence {card["rules"]["confidence"]}, for counting
  {card["rules"]["counting_confidence"]}.
- Data: {card["data"]["images_seen"]:,} rendered pictures of the styles
  {", ".join(card["data"]["styles"])};
  a part blurred and noisy, as generated pictures are.
- Recipe: {card["steps"]:,} steps, seed {recipe["seed"]}, batch {recipe["batch_size"]}, AdamW
  {recipe["learning_rate"]}; the rest in `card.json`.
- Hardware: {card["hardware"]}; {card["training_seconds"] / 60:.0f} minutes of training steps.
- Weights: `{card["weights"]["file"]}`, {card["weights"]["bytes"] / 1e6:.1f} MB,
  sha256 `{card["weights"]["sha256"]}`.
- Made by: `{card["command"]}` (resumable).
- History: {card["history"]}.
"""
