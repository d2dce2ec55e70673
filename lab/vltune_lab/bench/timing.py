"""Time two ways of doing the same thing in turns, so that both meet the same machine."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

MILLISECONDS = 1e3
LEAST_REPEATS = 5

Work = Callable[[], Sequence[Tensor]]
"""Does the work and returns what both ways must agree on."""


class Pair(NamedTuple):
    """Wall seconds of both ways, one entry a repeat, and their largest difference."""

    baseline: list[float]
    ours: list[float]
    max_abs_error: float


def time_pair(baseline: Work, ours: Work, repeats: int) -> Pair:
    """Run both once to warm up and compare, then `repeats` times in turns.

    Raises:
        ValueError: Fewer than five repeats, or results of different number or shape.
    """
    if repeats < LEAST_REPEATS:
        raise ValueError(f"expected at least {LEAST_REPEATS} repeats, got {repeats}")
    error = max_abs_error(baseline(), ours())
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for work, taken in zip((baseline, ours), seconds, strict=True):
            began = time.perf_counter()
            work()
            taken.append(time.perf_counter() - began)
    return Pair(*seconds, error)


def max_abs_error(expected: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """Largest absolute difference over all tensors."""
    if [tuple(t.shape) for t in expected] != [tuple(t.shape) for t in got]:
        raise ValueError(
            f"expected shapes {[tuple(t.shape) for t in expected]}, "
            f"got {[tuple(t.shape) for t in got]}"
        )
    with torch.no_grad():
        return max(
            float((a.double() - b.double()).abs().max()) for a, b in zip(expected, got, strict=True)
        )


def speed_row(name: str, setting: str, pair: Pair) -> dict[str, Any]:
    """Row of a speed file: medians in milliseconds, and the range of each."""
    baseline, ours = statistics.median(pair.baseline), statistics.median(pair.ours)
    return {
        "name": name,
        "baseline": round(baseline * MILLISECONDS, 4),
        "ours": round(ours * MILLISECONDS, 4),
        "ratio": round(baseline / ours, 3),
        "unit": "ms",
        "max_abs_error": pair.max_abs_error,
        "setting": setting,
        "repeats": len(pair.ours),
        "baseline_low": round(min(pair.baseline) * MILLISECONDS, 4),
        "baseline_high": round(max(pair.baseline) * MILLISECONDS, 4),
        "ours_low": round(min(pair.ours) * MILLISECONDS, 4),
        "ours_high": round(max(pair.ours) * MILLISECONDS, 4),
    }
