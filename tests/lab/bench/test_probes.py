"""The probes where the answer is known, and the benchmark's own way from worlds to rows."""

from pathlib import Path

import pytest
import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F

from vltune.algorithms.encoded_split import FeatureBatch
from vltune_lab.bench.probes import best_cosines, run_probes, seek


class Mean(nn.Module):
    """Loss <w, mean patch> + |w|^2: the gradient at w = 0 is the mean patch itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(width))

    def loss(self, batch: FeatureBatch) -> Tensor:
        return (batch.patch_features.mean(dim=(0, 1)) * self.w).sum() + self.w.square().sum()

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [self.w]


def test_a_gradient_that_is_the_image_gives_the_image_away() -> None:
    generator = torch.Generator().manual_seed(3)
    patch = F.normalize(torch.randn(1, 1, 11, generator=generator), dim=-1)
    target = FeatureBatch(patch, patch[:, 0], torch.ones(1, 2))
    guess = torch.randn(1, 1, 11, generator=generator)
    found, match = seek(Mean(11), target, guess, steps=200)
    assert match > 0.999
    assert best_cosines(patch[0], found) > 0.999
    assert best_cosines(patch[0], F.normalize(guess[0], dim=-1)) < 0.9


def test_best_cosines_by_hand() -> None:
    """(1, 0) finds (1, 0): 1; (0, 1) finds (0.6, 0.8): 0.8; the mean is 0.9."""
    found = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    assert best_cosines(torch.eye(2), found) == pytest.approx(0.9)


@pytest.mark.slow
def test_rows_of_both_probes(tmp_path: Path) -> None:
    with Progress(disable=True) as bars:
        rows = run_probes([7], tmp_path, bars, quick=True)
    membership = [row for row in rows if row["method"] == "membership"]
    assert len(membership) == 3
    assert all(0 <= row["auc"] <= 1 and row["images"] == 16 for row in membership)
    assert membership[2]["record_epsilon"] > 0
    (inversion,) = (row for row in rows if row["method"] == "inversion")
    assert -1 <= inversion["similarity"] <= 1
    with Progress(disable=True) as bars:
        assert run_probes([7], tmp_path, bars, quick=True) == rows
