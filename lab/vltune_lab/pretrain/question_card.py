"""The part of a card that says how a model answers questions, for every compact model alike."""

from dataclasses import asdict
from typing import Any

from vltune.backbones.vision_language import VisionLanguageBackbone
from vltune_lab.pretrain.florence2_evaluation import question_figures
from vltune_lab.scenes.library import (
    FEDERATION_STYLES,
    PRETRAINING_STYLES,
    SHIFTED_STYLES,
    load_library,
)

READINGS = {
    "**model**": "exact_match",
    "other image": "other_image",
    "blind": "blind",
    "majority": "majority",
}


def measure_questions(
    backbone: VisionLanguageBackbone, seed: int, num_images: int
) -> dict[str, dict[str, Any]]:
    """Exact match of the published weights, by group of styles.

    Args:
        backbone: As it will be loaded.
        seed: Of the run; the scenes have another.
        num_images: Scenes of each group.
    """
    library = load_library()
    groups = {
        "pretraining": PRETRAINING_STYLES,
        "federation": FEDERATION_STYLES,
        "shifted": SHIFTED_STYLES,
    }
    return {
        name: asdict(
            question_figures(
                backbone, library, styles, num_images=num_images, seed=seed + 1,
                drawings="all" if name == "pretraining" else "held_out",
            )
        )
        for name, styles in groups.items()
    }  # fmt: skip


def question_table(questions: dict[str, dict[str, Any]]) -> str:
    """The figures as a Markdown table, with what its rows mean."""
    kinds = questions["pretraining"]["exact_match"]
    rows = "\n".join(_rows(name, figures) for name, figures in questions.items())
    return f"""| styles | reading | {" | ".join(kinds)} |
|---|---|{"---|" * len(kinds)}
{rows}

"Other image" gives each question another scene's image; "blind" answers from the question's words
alone, learnt from three times as many scenes; "majority" is the kind's most frequent answer. The
federation and shifted styles were never seen in pre-training; their figures use held-out drawings.
All scenes measured show held-out backgrounds where their scene type has any."""


def _rows(name: str, figures: dict[str, Any]) -> str:
    """One line per reading of one group of styles."""
    kinds = figures["exact_match"]
    return "\n".join(
        f"| {name} | {label} | "
        + " | ".join(f"{figures[key].get(kind, 0.0):.3f}" for kind in kinds)
        + " |"
        for label, key in READINGS.items()
    )
