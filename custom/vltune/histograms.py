"""Score histograms that may leave a site, and the global mAP that the server makes of them.

A site sends, for each class, counts of present and absent images by score interval. Two knobs limit
what they tell: a class with fewer than `min_cell` present or absent images at the site is withheld
altogether, and intervals are merged until each describes at least `min_interval` images. Merged
intervals end on the roundest grid value between two images, never at a score, and the class's own AP
(to a thousandth) goes with them, from which the server learns how positives stand inside an interval
(`vltune.interval_ranking`). Grid: uniform in the logit, as probabilities crowd near 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vltune.interval_ranking import IntervalList, average_precisions, pooled_average_precision

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

NUM_BINS = 2**30
"""Bins of the grid that edges are sent on: finer than fp32 probabilities."""
LOGIT_RANGE = 16.0
"""Scores beyond sigmoid(+-16) fall into the outermost bins; fp32 cannot tell them from 1."""
AP_UNIT = 1000
"""Reported AP are sent in thousandths."""
NOT_REPORTED = -1
MAX_IMAGES = 1_000_000
"""Most images of a class that a site may claim: the server's work grows with the counts."""
_FIELDS = ("class_offsets", "lows", "highs", "positives", "negatives")
_REPORTED = "average_precisions"


class HistogramError(ValueError):
    """Histogram tensors contradict themselves; the message says how."""


@dataclass(frozen=True)
class ScoreHistograms:
    """Histograms of C classes as flat arrays.

    Attributes:
        class_offsets: Intervals of class c are offsets[c] to offsets[c + 1], (C + 1,). A withheld
            class has none.
        lows: Lowest grid bin of each interval; intervals of a class descend and do not overlap.
        highs: Highest grid bin of each interval, inclusive.
        positives: Images with the class, by interval.
        negatives: Images known to be without it, by interval.
    """

    class_offsets: Ints
    lows: Ints
    highs: Ints
    positives: Ints
    negatives: Ints

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_offsets) - 1

    @property
    def num_withheld(self) -> int:
        """Classes that were withheld."""
        return int((np.diff(self.class_offsets) == 0).sum())

    def to_tensors(self) -> dict[str, Tensor]:
        """Wire form: five int32 vectors."""
        return {name: torch.from_numpy(getattr(self, name).astype(np.int32)) for name in _FIELDS}

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor], source: str) -> "ScoreHistograms":
        """Read and check the wire form.

        Raises:
            HistogramError: A field is missing, unknown, of the wrong type, or contradicts another.
        """
        if set(tensors) != set(_FIELDS):
            raise HistogramError(f"{source}: expected {sorted(_FIELDS)}, got {sorted(tensors)}")
        for name, value in tensors.items():
            if value.dtype != torch.int32 or value.ndim != 1:
                raise HistogramError(
                    f"{source}: {name} must be a vector of int32, got {value.dtype}"
                )
        result = ScoreHistograms(**{n: tensors[n].numpy().astype(np.int64) for n in _FIELDS})
        result._check(source)
        return result

    def _check(self, source: str) -> None:
        offsets, size = self.class_offsets, len(self.lows)
        if (
            not len(offsets)
            or offsets[0] != 0
            or offsets[-1] != size
            or (np.diff(offsets) < 0).any()
        ):
            raise HistogramError(f"{source}: class_offsets do not cover the {size} intervals")
        if not size == len(self.highs) == len(self.positives) == len(self.negatives):
            raise HistogramError(f"{source}: counts and intervals differ in number")
        if (self.positives < 0).any() or (self.negatives < 0).any():
            raise HistogramError(f"{source}: a count is negative")
        if size and not (self.lows.min() >= 0 and self.highs.max() < NUM_BINS):
            raise HistogramError(f"{source}: an interval lies outside the grid of {NUM_BINS} bins")
        descends = self.highs[1:] < self.lows[:-1]
        starts = offsets[1:-1]
        descends[starts[(starts > 0) & (starts < size)] - 1] = True
        if (self.highs < self.lows).any() or not descends.all():
            raise HistogramError(f"{source}: the intervals of a class overlap or do not descend")


def score_histograms(
    scores: Floats, labels: NDArray[np.int8], *, min_cell: int = 5, min_interval: int = 1
) -> ScoreHistograms:
    """Build the histograms of one site.

    Args:
        scores: Probabilities, (N, C), in [0, 1].
        labels: (N, C), 1, 0 or -1 for unknown (left out).
        min_cell: Smallest number of present and of absent images that a class must have; 1
            withholds only classes that lack either.
        min_interval: Smallest number of images that an interval may describe.

    Raises:
        HistogramError: Scores outside [0, 1], NaN, shapes disagree, or a minimum below 1.
    """
    if scores.shape != labels.shape or scores.ndim != 2:
        raise HistogramError(f"scores {scores.shape} and labels {labels.shape} disagree")
    if min(min_cell, min_interval) < 1:
        raise HistogramError(
            f"min_cell and min_interval must be >= 1, got {min_cell}, {min_interval}"
        )
    if not ((scores >= 0) & (scores <= 1)).all():
        raise HistogramError("scores must be probabilities in [0, 1]; some are not, or are NaN")
    bins = _bins(scores)
    offsets, parts = [0], [np.zeros((0, 4), dtype=np.int64)]
    for c in range(scores.shape[1]):
        known = labels[:, c] >= 0
        positive = labels[known, c] == 1
        if min(positive.sum(), (~positive).sum()) >= min_cell:
            parts.append(_intervals(bins[known, c], positive, min_interval))
            offsets.append(offsets[-1] + len(parts[-1]))
        else:
            offsets.append(offsets[-1])
    lows, highs, positives, negatives = np.concatenate(parts).T.copy()
    return ScoreHistograms(np.array(offsets, dtype=np.int64), lows, highs, positives, negatives)


def _bins(scores: Floats) -> Ints:
    tiny = np.exp(-LOGIT_RANGE - 1)
    clipped = np.clip(scores, tiny, 1 - tiny)
    logits = np.log(clipped) - np.log1p(-clipped)
    share = (logits + LOGIT_RANGE) / (2 * LOGIT_RANGE)
    return np.clip((share * NUM_BINS).astype(np.int64), 0, NUM_BINS - 1)


def _intervals(bins: Ints, positive: NDArray[np.bool_], min_interval: int) -> Ints:
    """Merge bins from the highest score down: rows (low, high, positives, negatives)."""
    hits = np.bincount(bins[positive], minlength=NUM_BINS)
    misses = np.bincount(bins[~positive], minlength=NUM_BINS)
    rows: list[list[int]] = []
    count = min_interval  # the first bin opens an interval
    for b in np.flatnonzero(hits + misses)[::-1].tolist():
        if count >= min_interval:
            rows.append([b, b, 0, 0])
            count = 0
        rows[-1][0] = b
        rows[-1][2] += int(hits[b])
        rows[-1][3] += int(misses[b])
        count += int(hits[b] + misses[b])
    if count < min_interval and len(rows) > 1:  # too few are left for an interval of their own
        last = rows.pop()
        rows[-1] = [last[0], rows[-1][1], rows[-1][2] + last[2], rows[-1][3] + last[3]]
    return np.array(rows, dtype=np.int64)


def mean_average_precision_from(histograms: Sequence[ScoreHistograms]) -> tuple[float, Floats]:
    """Global mAP and per-class AP from the histograms of all sites.

    Each interval's counts are spread evenly over its grid bins, and images of one bin are taken
    together, as ties are.

    Returns:
        mAP over classes with a positive, and AP (C,), NaN where no site released the class.

    Raises:
        HistogramError: No histograms, or sites that disagree about the number of classes.
    """
    if not histograms or len({item.num_classes for item in histograms}) != 1:
        raise HistogramError("expected histograms of at least one site, all of the same classes")
    per_class = np.array([_pooled_ap(histograms, c) for c in range(histograms[0].num_classes)])
    finite = per_class[np.isfinite(per_class)]
    return (float(finite.mean()) if len(finite) else float("nan")), per_class


def _pooled_ap(histograms: Sequence[ScoreHistograms], c: int) -> float:
    hits, totals = np.zeros(NUM_BINS), np.zeros(NUM_BINS)
    for item in histograms:
        rows = slice(item.class_offsets[c], item.class_offsets[c + 1])
        for low, high, positives, negatives in zip(
            item.lows[rows],
            item.highs[rows],
            item.positives[rows],
            item.negatives[rows],
            strict=True,
        ):
            width = high + 1 - low
            hits[low : high + 1] += positives / width
            totals[low : high + 1] += (positives + negatives) / width
    total = hits.sum()
    if total <= 0:
        return float("nan")
    found, seen = np.cumsum(hits[::-1]), np.cumsum(totals[::-1])
    precision = np.divide(found, seen, where=seen > 0, out=np.zeros(NUM_BINS))
    return float((precision * hits[::-1]).sum() / total)
