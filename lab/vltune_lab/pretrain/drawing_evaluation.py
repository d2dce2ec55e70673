"""How well a generator follows prompts: its GenEval score as a share of true pictures' score."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from vltune.geneval import GenevalScores, Judge, score_images
from vltune_lab.pretrain.judge_evaluation import TestPictures


class Drawer(Protocol):
    """The part of `vltune.backbones.unified.UnifiedBackbone` that is measured."""

    def generate_images(
        self, prompts: Sequence[str], *, generator: torch.Generator, guidance: float | None = None
    ) -> Tensor:
        """Images (B, 3, H, W), fp32 in [0, 1]."""


@dataclass(frozen=True)
class DrawingFigures:
    """Scores in [0, 1].

    Attributes:
        generated: Of the generator's pictures.
        true: Of true pictures of the same prompts: the judge's own limit.
        share: `generated` over `true`, by family and `overall`; 0 where no true picture is right.
    """

    generated: GenevalScores
    true: GenevalScores
    share: dict[str, float]


def drawing_figures(
    drawer: Drawer,
    judge: Judge,
    pictures: TestPictures,
    *,
    seed: int,
    batch_size: int = 32,
) -> DrawingFigures:
    """Draw one picture for each prompt and judge it beside a true one.

    Args:
        drawer: The generator.
        judge: Shares nothing with it.
        pictures: Of `draw_pictures`: prompts with true pictures, of one tier of vocabulary.
        seed: Of the generator's chance.
        batch_size: Pictures drawn at a time.
    """
    texts = [prompt.prompt for prompt in pictures.prompts]
    chance = torch.Generator().manual_seed(seed)
    drawn = [
        drawer.generate_images(texts[start : start + batch_size], generator=chance).cpu()
        for start in range(0, len(texts), batch_size)
    ]
    generated = score_images(judge, torch.cat(drawn), pictures.prompts)
    true = score_images(judge, pictures.images, pictures.prompts)
    pairs = {tag: (generated.by_tag[tag], true.by_tag[tag]) for tag in true.by_tag}
    pairs["overall"] = generated.overall, true.overall
    return DrawingFigures(
        generated, true, {tag: own / best if best else 0.0 for tag, (own, best) in pairs.items()}
    )


def drawing_card(figures: DrawingFigures) -> dict[str, Any]:
    """Rounded, for a card."""

    def rounded(scores: GenevalScores) -> dict[str, float]:
        values = scores.by_tag | {"overall": scores.overall}
        return {tag: round(value, 4) for tag, value in values.items()}

    return {
        "generated": rounded(figures.generated),
        "true_pictures": rounded(figures.true),
        "share": {tag: round(value, 4) for tag, value in figures.share.items()},
        "pictures": sum(figures.true.num_images.values()),
    }
