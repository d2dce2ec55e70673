"""Scores of generators beside those of true pictures."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from vltune.backbones.center_detector import load_compact_judge
from vltune.geneval_prompts import TAGS
from vltune_lab.pretrain.drawing_evaluation import drawing_card, drawing_figures
from vltune_lab.pretrain.judge_evaluation import draw_pictures
from vltune_lab.scenes.geneval_prompts import FIRST_CLASSES
from vltune_lab.scenes.library import PACKAGED_ASSETS, load_library

pytestmark = pytest.mark.slow
STYLES = ("twemoji",)


class Copier:
    """Draws, for the n-th prompt asked for, the n-th of some pictures."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.next = images, 0

    def generate_images(
        self, prompts: Sequence[str], *, generator: torch.Generator, guidance: float | None = None
    ) -> Tensor:
        first, self.next = self.next, self.next + len(prompts)
        return self.images[first : self.next]


def test_true_pictures_have_the_whole_share_and_grey_ones_none() -> None:
    library = load_library(styles=STYLES, verify=False)
    judge = load_compact_judge(PACKAGED_ASSETS / "judge-compact")
    pictures = draw_pictures(library, FIRST_CLASSES, STYLES, per_tag=4, seed=3)
    for images, share in ((pictures.images, 1.0), (torch.full_like(pictures.images, 0.5), 0.0)):
        figures = drawing_figures(Copier(images), judge, pictures, seed=3, batch_size=5)
        assert set(figures.share) == {*TAGS, "overall"}
        assert figures.share["overall"] == share
        assert drawing_card(figures)["pictures"] == 24
