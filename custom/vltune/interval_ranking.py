r"""Average precision of ranked lists that are known only up to intervals of scores.

A list (one class at one site) is a set of disjoint score intervals with the numbers of positives
and negatives in each. Where an image stands inside its interval is drawn, and the AP of the merged
lists is averaged over the draws. Uniform draws would be biased by several points, because positives
stand higher than negatives inside an interval too. So their densities in an interval of width w are

    exp((slope + tilt (1 - p) / s) x)  for positives,   exp((slope - tilt p / s) x)  for negatives,

for x in [0, w]: `slope` continues the density of images from interval to interval, p is the local
share of positives and s the spread of the list. This is a logistic P(positive | x) to first order,
with one log-odds slope `tilt` for all lists. It is not guessed: it is the value at which the lists'
own expected AP equal, in the mean, the AP that they report. Then, for each list, the draws whose AP
are nearest to the reported one are kept. An interval of one grid step is a tie and ranked as such.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TILTS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
"""Log-odds slopes by standard deviation of a list, tried until expected AP exceed reported ones."""
MAX_EXPONENT = 12.0
"""Steepest density across one interval: all of its mass within a twelfth of it."""
CALIBRATION_DRAWS = 8
MAX_DRAWS = 128
KEPT_SHARE = 8
"""One of so many draws is kept: the nearest to the reported AP."""
MAX_ENTRIES = 2**15
"""Draws times images of a list; long lists need fewer draws, as their AP hardly depends on them."""


@dataclass(frozen=True, eq=False)
class IntervalList:
    """One ranked list; intervals descend and do not overlap.

    Attributes:
        lows: Lowest grid bin of each interval.
        highs: Highest grid bin of each interval, inclusive.
        positives: Positives in each interval.
        negatives: Negatives in each interval.
        average_precision: AP of the list itself in [0, 1]; NaN where it was not reported.
    """

    lows: Ints
    highs: Ints
    positives: Ints
    negatives: Ints
    average_precision: float

    @cached_property
    def lowest_positive(self) -> int:
        """Lowest bin that a positive can be in; images below it change no AP."""
        return int(self.lows[self.positives > 0].min())

    @cached_property
    def key(self) -> bytes:
        """Sorts lists whatever order the sites came in."""
        return b"".join(
            x.tobytes() for x in (self.lows, self.highs, self.positives, self.negatives)
        )

    @cached_property
    def image_interval(self) -> Ints:
        """Interval of each image, positives first."""
        index = np.arange(len(self.lows))
        return np.concatenate([np.repeat(index, self.positives), np.repeat(index, self.negatives)])

    @cached_property
    def is_positive(self) -> NDArray[np.bool_]:
        """Whether each image is positive."""
        return np.repeat([True, False], [self.positives.sum(), self.negatives.sum()])

    @cached_property
    def exponents(self) -> tuple[Floats, Floats]:
        """Exponent of each image's density across its interval: at tilt 0, and per unit of tilt."""
        width = (self.highs + 1 - self.lows).astype(float)
        counts = (self.positives + self.negatives).astype(float)
        middle = (self.lows + self.highs) / 2
        spread = max(float(np.sqrt(np.cov(middle, aweights=counts, bias=True))), 1.0)
        near = np.array([0.5, 1.0, 0.5])
        positives = np.convolve(self.positives, near)[1:-1] + 0.25
        share = (positives / (np.convolve(counts, near)[1:-1] + 0.5))[self.image_interval]
        per_tilt = (width / spread)[self.image_interval]
        toward = np.where(self.is_positive, 1 - share, -share)
        return (_slopes(middle, width, counts) * width)[self.image_interval], per_tilt * toward

    def draw(self, draws: int, tilt: float, floor: int, rng: Generator) -> tuple[Floats, Floats]:
        """Draw grid positions of the images that may stand at `floor` or above.

        Returns:
            Positions (draws, n) and whether each image is positive (n,), as 0 or 1.
        """
        chosen = self.highs[self.image_interval] >= floor
        interval = self.image_interval[chosen]
        flat, per_tilt = (exponent[chosen] for exponent in self.exponents)
        steep = np.clip(flat + tilt * per_tilt, -MAX_EXPONENT, MAX_EXPONENT)
        steep = np.where(np.abs(steep) < 1e-3, 1e-3, steep)
        # Inverse of the distribution function of exp(steep * z) on [0, 1).
        share = np.log1p(rng.random((draws, len(interval))) * np.expm1(steep)) / steep
        width = (self.highs + 1 - self.lows)[interval]
        place = np.minimum(np.floor(share * width), width - 1)
        return self.lows[interval] + place, self.is_positive[chosen].astype(float)


def pooled_average_precision(classes: Sequence[Sequence[IntervalList]]) -> Floats:
    """AP of each class over all its lists merged; the order of the lists does not matter.

    Args:
        classes: For each class, the lists of the sites that released it, each with a positive.

    Returns:
        (C,), NaN for a class without lists.
    """
    ordered = [sorted(lists, key=lambda item: item.key) for lists in classes]
    tilt = _calibrate([item for lists in ordered for item in lists])
    rng = np.random.default_rng(0)
    return np.array([_merged(lists, tilt, rng) if lists else np.nan for lists in ordered])


def average_precisions(positions: Floats, is_positive: Floats) -> Floats:
    """AP of each draw, (draws,); equal positions are ties as in scikit-learn.

    Args:
        positions: (draws, n), higher ranks first.
        is_positive: 0 or 1, (n,), at least one of them 1.
    """
    order = np.argsort(-positions, axis=1, kind="stable")
    ranked = np.take_along_axis(positions, order, axis=1)
    found = is_positive[order]
    last = np.arange(ranked.shape[1])
    is_end = np.append(ranked[:, 1:] != ranked[:, :-1], np.ones((len(ranked), 1), bool), axis=1)
    # Each image takes the precision at the end of its group of ties.
    end = np.minimum.accumulate(np.where(is_end, last, last[-1])[:, ::-1], axis=1)[:, ::-1]
    hits = np.take_along_axis(np.cumsum(found, axis=1), end, axis=1)
    precision: Floats = (found * hits / (end + 1)).sum(axis=1) / is_positive.sum()
    return precision


def _slopes(middle: Floats, width: Floats, counts: Floats) -> Floats:
    """Slope of the log density of images at each interval, from its neighbours."""
    wide = width > 1  # a single grid step has no density
    if wide.sum() < 2:
        return np.zeros(len(middle))
    slopes = np.zeros(len(middle))
    slopes[wide] = np.gradient(np.log(counts[wide] / width[wide]), middle[wide])
    return slopes


def _calibrate(lists: Sequence[IntervalList]) -> float:
    """Tilt at which expected and reported AP agree in the mean over all lists that report one."""
    reporting = [item for item in lists if np.isfinite(item.average_precision)]
    if not reporting:
        return 0.0
    tried: list[float] = []
    excesses: list[float] = []
    for tilt in TILTS:
        rng = np.random.default_rng(0)
        excess = 0.0
        for item in reporting:
            drawn = item.draw(CALIBRATION_DRAWS, tilt, item.lowest_positive, rng)
            excess += float(average_precisions(*drawn).mean()) - item.average_precision
        tried.append(tilt)
        excesses.append(excess)
        if excess >= 0:
            break
    return float(np.interp(0.0, excesses[-2:], tried[-2:]))


def _merged(lists: Sequence[IntervalList], tilt: float, rng: Generator) -> float:
    """Mean AP of the merged lists over draws that fit each list's own AP."""
    floor = min(item.lowest_positive for item in lists)
    longest = max(int((item.highs[item.image_interval] >= floor).sum()) for item in lists)
    draws = int(np.clip(MAX_ENTRIES // longest, KEPT_SHARE, MAX_DRAWS))
    kept = draws // KEPT_SHARE
    positions, labels = [], []
    for item in lists:
        reports = np.isfinite(item.average_precision)
        drawn, is_positive = item.draw(draws if reports else kept, tilt, floor, rng)
        if reports:
            distance = np.abs(average_precisions(drawn, is_positive) - item.average_precision)
            drawn = drawn[rng.permutation(np.argsort(distance, kind="stable")[:kept])]
        positions.append(drawn)
        labels.append(is_positive)
    merged = np.concatenate(positions, axis=1)
    return float(average_precisions(merged, np.concatenate(labels)).mean())
