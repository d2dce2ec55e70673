import time

import pytest
import torch

from vltune_lab.bench.results import validate_results
from vltune_lab.bench.timing import Pair, max_abs_error, speed_row, time_pair


def test_both_ways_run_in_turns_after_a_warm_up() -> None:
    order: list[str] = []

    def way(name: str, value: float) -> list[torch.Tensor]:
        order.append(name)
        time.sleep(0.001)
        return [torch.tensor([value, 1.0])]

    pair = time_pair(lambda: way("a", 1.0), lambda: way("b", 1.25), 5)
    assert "".join(order) == "ab" * 6
    assert len(pair.baseline) == len(pair.ours) == 5
    assert min(*pair.baseline, *pair.ours) >= 0.001
    assert pair.max_abs_error == 0.25


def test_a_row_holds_medians_in_milliseconds_and_ranges(speed: dict) -> None:
    # Medians 0.3 s and 0.02 s: 300 / 20 = 15 times faster.
    pair = Pair([0.9, 0.1, 0.3, 0.4, 0.2], [0.02, 0.01, 0.05, 0.02, 0.03], 1e-6)
    row = speed_row("x", "B=2", pair)
    assert (row["baseline"], row["ours"], row["ratio"]) == (300.0, 20.0, 15.0)
    assert (row["baseline_low"], row["ours_high"], row["repeats"]) == (100.0, 50.0, 5)
    validate_results(speed | {"rows": [row]})


def test_results_must_be_comparable() -> None:
    with pytest.raises(ValueError, match=r"expected shapes \[\(2,\)\], got \[\(3,\)\]"):
        max_abs_error([torch.zeros(2)], [torch.zeros(3)])
    with pytest.raises(ValueError, match="at least 5 repeats, got 4"):
        time_pair(lambda: [], lambda: [], 4)
