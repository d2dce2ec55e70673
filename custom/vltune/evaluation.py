"""A model on a site's own labelled images: scores, metrics, and histograms that may leave."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vltune.histograms import ScoreHistograms, score_histograms
from vltune.metrics import MultiLabelMetrics, multilabel_metrics

FIXED_THRESHOLD = 0.5


@dataclass(frozen=True)
class SiteEvaluation:
    """Metrics stay readable scalars; histograms are what the server pools into a global mAP."""

    metrics: MultiLabelMetrics
    histograms: ScoreHistograms


def predict_scores(
    logits_of: Callable[[Tensor], Tensor], num_examples: int, batch_size: int = 128
) -> NDArray[np.float64]:
    """Probabilities (N, C) in [0, 1] of all examples, batch by batch, without gradients."""
    batches = torch.arange(num_examples).split(batch_size)  # type: ignore[no-untyped-call] # torch's stub
    with torch.no_grad():
        parts = [torch.sigmoid(logits_of(indices)).cpu() for indices in batches]
    return torch.cat(parts).numpy().astype(np.float64)


def evaluate_scores(
    scores: NDArray[np.float64],
    labels: NDArray[np.int8],
    *,
    threshold: float = FIXED_THRESHOLD,
    min_cell: int,
    min_interval: int = 1,
) -> SiteEvaluation:
    """Metrics at `threshold` and the histograms of all scores.

    Args:
        scores: Probabilities, (N, C).
        labels: (N, C), 1, 0 or -1 for unknown.
        threshold: For CF1 and OF1; configuration, never chosen on test data.
        min_cell: Classes with fewer present or absent images are left out of the histograms.
        min_interval: Smallest number of images that a score interval may describe.
    """
    return SiteEvaluation(
        metrics=multilabel_metrics(scores, labels, threshold),
        histograms=score_histograms(scores, labels, min_cell=min_cell, min_interval=min_interval),
    )
