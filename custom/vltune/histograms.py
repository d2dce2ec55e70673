"""Score histograms that may leave a site, and the global mAP that the server makes of them.

A site sends, for each class, counts of present and absent images by score interval. Two knobs limit
what they tell: a class with fewer than `min_cell` present or absent images at the site is withheld
altogether, and intervals are merged until each describes at least `min_interval` images. Merged
intervals end on the roundest grid value between two images, and the class's AP (to a thousandth)
goes with them, from which the server learns how positives stand inside an interval
(`vltune.interval_ranking`): with five images an interval the global mAP is then within some 0.0015
(root mean square; at worst 0.003) of the pooled value, where uniform order would be 0.03 off. The
grid is uniform in the logit, as probabilities crowd near 0.
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
        average_precisions: AP of each class at the site in thousandths, (C,), -1 where it is not
            reported; None where single images have intervals of their own, which say it all.
    """

    class_offsets: Ints
    lows: Ints
    highs: Ints
    positives: Ints
    negatives: Ints
    average_precisions: Ints | None = None

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_offsets) - 1

    @property
    def num_withheld(self) -> int:
        """Classes that were withheld."""
        return int((np.diff(self.class_offsets) == 0).sum())

    def to_tensors(self) -> dict[str, Tensor]:
        """Wire form: five int32 vectors, six with `average_precisions`."""
        names = _FIELDS if self.average_precisions is None else (*_FIELDS, _REPORTED)
        return {name: torch.from_numpy(getattr(self, name).astype(np.int32)) for name in names}

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor], source: str) -> "ScoreHistograms":
        """Read and check the wire form.

        Raises:
            HistogramError: A field is missing, unknown, of the wrong type, or contradicts another.
        """
        if set(tensors) - {_REPORTED} != set(_FIELDS):
            raise HistogramError(f"{source}: expected {sorted(_FIELDS)}, got {sorted(tensors)}")
        for name, value in tensors.items():
            if value.dtype != torch.int32 or value.ndim != 1:
                raise HistogramError(
                    f"{source}: {name} must be a vector of int32, got {value.dtype}"
                )
        arrays = {name: value.numpy().astype(np.int64) for name, value in tensors.items()}
        result = ScoreHistograms(**arrays)
        result._check_intervals(source)
        result._check_counts(source)
        return result

    def lists_of(self, c: int) -> list[IntervalList]:
        """The ranked list of class c, none where it was withheld."""
        rows = slice(self.class_offsets[c], self.class_offsets[c + 1])
        if rows.start == rows.stop:
            return []
        reported = NOT_REPORTED if self.average_precisions is None else self.average_precisions[c]
        return [
            IntervalList(
                self.lows[rows],
                self.highs[rows],
                self.positives[rows],
                self.negatives[rows],
                np.nan if reported == NOT_REPORTED else float(reported) / AP_UNIT,
            )
        ]

    def _check_intervals(self, source: str) -> None:
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
        if size and not (self.lows.min() >= 0 and self.highs.max() < NUM_BINS):
            raise HistogramError(f"{source}: an interval lies outside the grid of {NUM_BINS} bins")
        descends = self.highs[1:] < self.lows[:-1]
        starts = offsets[1:-1]
        descends[starts[(starts > 0) & (starts < size)] - 1] = True
        if (self.highs < self.lows).any() or not descends.all():
            raise HistogramError(f"{source}: the intervals of a class overlap or do not descend")

    def _check_counts(self, source: str) -> None:
        if (self.positives < 0).any() or (self.negatives < 0).any():
            raise HistogramError(f"{source}: a count is negative")
        counts = self.positives + self.negatives
        if (counts == 0).any():
            raise HistogramError(f"{source}: an interval describes no image")
        for c in np.flatnonzero(np.diff(self.class_offsets)):
            rows = slice(self.class_offsets[c], self.class_offsets[c + 1])
            if not self.positives[rows].any() or counts[rows].sum() > MAX_IMAGES:
                raise HistogramError(
                    f"{source}: class {c} has {self.positives[rows].sum()} positives of "
                    f"{counts[rows].sum()} images; expected at least 1 and at most {MAX_IMAGES}"
                )
        reported = self.average_precisions
        if reported is not None and (
            len(reported) != self.num_classes
            or reported.min(initial=0) < NOT_REPORTED
            or reported.max(initial=0) > AP_UNIT
        ):
            raise HistogramError(f"{source}: {_REPORTED} must be C values from -1 to {AP_UNIT}")


def score_histograms(
    scores: Floats,
    labels: NDArray[np.int8],
    *,
    min_cell: int = 5,
    min_interval: int = 1,
    num_bins: int = 4096,
) -> ScoreHistograms:
    """Build the histograms of one site.

    Args:
        scores: Probabilities, (N, C), in [0, 1].
        labels: (N, C), 1, 0 or -1 for unknown (left out).
        min_cell: Smallest number of present and of absent images that a class must have; 1
            withholds only classes that lack either.
        min_interval: Smallest number of images that an interval may describe. With 1 the scores
            are as good as sent, to a bin; with `num_bins` 2^30 too the pooled AP is exact.
        num_bins: Resolution of scores, a power of two of at most 2^30: images closer than a bin are
            not told apart.

    Raises:
        HistogramError: Scores outside [0, 1], NaN, shapes disagree, or a number out of range.
    """
    _check_request(scores, labels, min(min_cell, min_interval), num_bins)
    step = NUM_BINS // num_bins
    bins = _bins(scores) // step
    num_classes = scores.shape[1]
    parts = [np.zeros((0, 4), dtype=np.int64) for _ in range(num_classes)]
    reported = np.full(num_classes, NOT_REPORTED, dtype=np.int64)
    for c in range(num_classes):
        known = labels[:, c] >= 0
        positive = labels[known, c] == 1
        if min(positive.sum(), (~positive).sum()) < min_cell:
            continue
        parts[c] = _intervals(bins[known, c], positive, min_interval)
        # The AP of fewer positives would tell their ranks.
        if positive.sum() >= min_interval:
            ap = average_precisions(scores[known, c][np.newaxis], positive.astype(float))
            reported[c] = round(float(ap[0]) * AP_UNIT)
    lows, highs, positives, negatives = np.concatenate(parts).T.copy()
    return ScoreHistograms(
        np.cumsum([0, *map(len, parts)]),
        lows * step,
        (highs.clip(max=num_bins - 1) + 1) * step - 1,
        positives,
        negatives,
        reported if min_interval > 1 else None,
    )


def mean_average_precision_from(histograms: Sequence[ScoreHistograms]) -> tuple[float, Floats]:
    """Global mAP and per-class AP from the histograms of all sites, in any order.

    Returns:
        mAP over classes with a positive, and AP (C,), NaN where no site released the class.

    Raises:
        HistogramError: No histograms, or sites that disagree about the number of classes.
    """
    if not histograms or len({item.num_classes for item in histograms}) != 1:
        raise HistogramError("expected histograms of at least one site, all of the same classes")
    per_class = pooled_average_precision(
        [
            [ranked for item in histograms for ranked in item.lists_of(c)]
            for c in range(histograms[0].num_classes)
        ]
    )
    finite = per_class[np.isfinite(per_class)]
    return (float(finite.mean()) if len(finite) else float("nan")), per_class


def _check_request(scores: Floats, labels: NDArray[np.int8], minimum: int, num_bins: int) -> None:
    if scores.shape != labels.shape or scores.ndim != 2:
        raise HistogramError(f"scores {scores.shape} and labels {labels.shape} disagree")
    if minimum < 1:
        raise HistogramError(f"min_cell and min_interval must be >= 1, the least is {minimum}")
    if not 1 <= num_bins <= NUM_BINS or num_bins & (num_bins - 1):
        raise HistogramError(f"num_bins must be a power of two up to {NUM_BINS}, got {num_bins}")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise HistogramError("scores must be probabilities in [0, 1]; some are not, or are NaN")


def _bins(scores: Floats) -> Ints:
    with np.errstate(divide="ignore"):
        logits = np.log(scores) - np.log1p(-scores)
    share = (logits.clip(-LOGIT_RANGE, LOGIT_RANGE) + LOGIT_RANGE) / (2 * LOGIT_RANGE)
    return np.minimum((share * NUM_BINS).astype(np.int64), NUM_BINS - 1)


def _intervals(bins: Ints, positive: NDArray[np.bool_], min_interval: int) -> Ints:
    """Merge occupied bins from the highest down: rows (low, high, positives, negatives)."""
    occupied, inverse = np.unique(-bins, return_inverse=True)
    occupied = -occupied  # descending
    hits = np.bincount(inverse, weights=positive).astype(np.int64)
    counts = np.bincount(inverse)
    starts, count = [0], 0
    for index, images in enumerate(counts.tolist()):
        if count >= min_interval:
            starts.append(index)
            count = 0
        count += images
    if count < min_interval and len(starts) > 1:  # too few are left for an interval of their own
        starts.pop()
    highest = occupied[starts]
    lowest = occupied[np.array([*starts[1:], len(occupied)]) - 1]
    lows, highs = _edges(highest, lowest)
    positives = np.add.reduceat(hits, starts)
    return np.stack([lows, highs, positives, np.add.reduceat(counts, starts) - positives], axis=1)


def _edges(highest: Ints, lowest: Ints) -> tuple[Ints, Ints]:
    """Edges of intervals by the highest and lowest occupied bin of each, descending.

    An interval of one bin is that bin. Others end on the roundest boundary between two intervals,
    which tells least about the scores beside it; the outermost pretend a neighbour one span away.
    """
    spans = highest - lowest
    above = np.append(highest[0] + max(int(spans[0]), 1), lowest[:-1])
    below = np.append(highest[1:], lowest[-1] - max(int(spans[-1]), 1))
    single = spans == 0
    lows = np.where(below < 0, 0, _roundest(below.clip(0), lowest))
    highs = _roundest(highest, above) - 1
    return np.where(single, lowest, lows), np.where(single, highest, highs)


def _roundest(below: Ints, above: Ints) -> Ints:
    """The multiple of the largest power of two in (below, above]."""
    highest_bit = np.frexp((below ^ above).astype(float))[1].astype(np.int64) - 1
    shift = highest_bit.clip(0)
    boundary: Ints = above >> shift << shift
    return boundary
