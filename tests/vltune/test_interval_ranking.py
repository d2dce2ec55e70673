import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from vltune.interval_ranking import IntervalList, average_precisions, pooled_average_precision


def interval_list(rows: list[tuple[int, int, int, int]], ap: float = np.nan) -> IntervalList:
    lows, highs, positives, negatives = np.array(rows, dtype=np.int64).T
    return IntervalList(lows, highs, positives, negatives, ap)


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_agrees_with_scikit_learn_on_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    positions = rng.integers(0, 11, (5, 23)).astype(float)
    is_positive = (rng.random(23) < 0.3).astype(float)
    expected = [average_precision_score(is_positive, row) for row in positions]
    assert np.allclose(average_precisions(positions, is_positive), expected, atol=1e-12)


def test_pure_intervals_leave_nothing_to_draw() -> None:
    """Ranked 1 1 0 0 0 1: AP = (1 + 1 + 3/6) / 3 = 5/6, wherever images stand inside."""
    ranked = interval_list([(900, 999, 2, 0), (500, 899, 0, 3), (0, 499, 1, 0)], ap=0.833)
    assert pooled_average_precision([[ranked], []])[0] == pytest.approx(5 / 6)
    assert np.isnan(pooled_average_precision([[ranked], []])[1])


def test_one_grid_step_is_a_tie() -> None:
    """One positive and three negatives in one bin: precision 1/4, as scikit-learn has it."""
    assert pooled_average_precision([[interval_list([(7, 7, 1, 3)])]])[0] == 0.25


def test_lists_merge_by_position() -> None:
    """Positive at 30; negative at 40 and positive at 20: 0 1 1, AP = (1/2 + 2/3) / 2 = 7/12."""
    a = interval_list([(30, 30, 1, 0)])
    b = interval_list([(40, 40, 0, 1), (20, 20, 1, 0)])
    assert pooled_average_precision([[a, b]])[0] == pytest.approx(7 / 12)


def test_without_a_report_order_is_uniform() -> None:
    """One positive among two in a wide interval: AP is 1 or 1/2 with equal chances, mean 3/4."""
    lists = [interval_list([(0, 10**6, 1, 1)])] * 1
    many = [lists] * 400
    assert np.mean(pooled_average_precision(many)) == pytest.approx(0.75, abs=0.02)


def test_draws_follow_the_reported_precision() -> None:
    """The same counts, but the sites report that positives come first, or last."""
    rows = [(2**20, 2**21, 3, 6), (0, 2**20 - 1, 3, 30)]
    found = {
        ap: pooled_average_precision([[interval_list(rows, ap)] * 2])[0] for ap in (0.3, 0.5, 0.7)
    }
    assert found[0.3] < found[0.5] < found[0.7]
    for ap, value in found.items():
        assert value == pytest.approx(ap, abs=0.08)


def test_drawn_positions_stay_in_their_interval_and_positives_stand_higher() -> None:
    rows = [(3000, 3999, 5, 5), (1000, 2999, 5, 40), (0, 999, 0, 50)]
    ranked = interval_list(rows)
    positions, is_positive = ranked.draw(200, 3.0, ranked.lowest_positive, np.random.default_rng(0))
    assert positions.shape == (200, 55)
    assert positions.min() >= 1000
    assert positions.max() <= 3999
    assert np.array_equal(positions, np.floor(positions))
    top = positions >= 3000
    labels = np.broadcast_to(is_positive, positions.shape)
    assert positions[top & (labels == 1)].mean() > positions[top & (labels == 0)].mean() + 50


def test_result_is_deterministic_and_independent_of_order() -> None:
    rng = np.random.default_rng(0)
    lists = [
        interval_list([(500, 999, int(p), 5), (0, 499, 1, int(n))], 0.5)
        for p, n in rng.integers(1, 9, (5, 2))
    ]
    forward = pooled_average_precision([lists])
    assert np.array_equal(forward, pooled_average_precision([lists[::-1]]))
