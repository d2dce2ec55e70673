"""The rules by hand, against numpy and scipy, and what must hold for any numbers."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import trim_mean
from torch import Tensor

from vltune.robust_rules import (
    clip_update,
    coordinate_median,
    cosines_to_others,
    krum_scores,
    squared_distances,
    trimmed_mean,
    update_norms,
    weighted_mean,
)

ZERO = {"a": torch.zeros(2)}


def points(*rows: list[float]) -> list[dict[str, Tensor]]:
    return [{"a": torch.tensor(row)} for row in rows]


def random_updates(count: int, seed: int = 11) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {"a": torch.randn(3, 5, generator=generator), "b": torch.randn(7, generator=generator)}
        for _ in range(count)
    ]


def test_the_median_of_an_odd_and_an_even_number() -> None:
    """Of 1, 9, 2: 2. Of 1, 9, 2, 4: (2 + 4) / 2 = 3."""
    odd = points([1, -5], [9, 0], [2, 7])
    assert coordinate_median(odd)["a"].tolist() == [2, 0]
    assert coordinate_median([*odd, *points([4, 1])])["a"].tolist() == [3, 0.5]


def test_the_weighted_median_by_hand() -> None:
    """Values 1, 2, 9 of weights 1, 1, 2: half of 4 is reached exactly at 2, so (2 + 9) / 2.

    With weights 1, 1, 3 half is 2.5, which is reached at 9.
    """
    values = points([9, 9], [1, 1], [2, 2])
    assert coordinate_median(values, [2, 1, 1])["a"].tolist() == [5.5, 5.5]
    assert coordinate_median(values, [3, 1, 1])["a"].tolist() == [9, 9]


def test_the_trimmed_mean_by_hand() -> None:
    """Of -100, 1, 2, 6, 50 without the ends: 9 / 3 = 3."""
    values = points([6, 6], [-100, 50], [2, 1], [50, 2], [1, -100])
    assert trimmed_mean(values, 1)["a"].tolist() == [3, 3]
    with pytest.raises(ValueError, match="cannot cut 3 values at each end of 5"):
        trimmed_mean(values, 3)


@pytest.mark.parametrize("count", [3, 4, 7, 8])
def test_numpy_and_scipy_agree(count: int) -> None:
    updates = random_updates(count)
    median, cut = coordinate_median(updates), (count - 1) // 2
    trimmed, mean = trimmed_mean(updates, cut), weighted_mean(updates, [1] * count)
    for name in updates[0]:
        stacked = np.stack([update[name].double().numpy() for update in updates])
        np.testing.assert_allclose(median[name], np.median(stacked, axis=0), rtol=1e-6)
        share = (cut + 0.5) / count
        np.testing.assert_allclose(trimmed[name], trim_mean(stacked, share), rtol=2e-6)
        np.testing.assert_allclose(mean[name], stacked.mean(axis=0), rtol=2e-6, atol=1e-7)


def test_a_median_with_whole_weights_is_that_of_repeated_values() -> None:
    updates, weights = random_updates(5), [3, 1, 4, 2, 5]
    for name, got in coordinate_median(updates, weights).items():
        stacked = np.stack([update[name].double().numpy() for update in updates])
        expected = np.median(np.repeat(stacked, weights, axis=0), axis=0)
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_clipping_by_hand() -> None:
    """From (1, 1) to (4, 5): distance 5. At 2.5 it ends halfway, at (2.5, 3)."""
    start, update = {"a": torch.ones(2)}, {"a": torch.tensor([4.0, 5.0])}
    assert update_norms(start, [update]) == [5.0]
    assert clip_update(start, update, 2.5)["a"].tolist() == [2.5, 3.0]
    assert torch.equal(clip_update(start, update, 5.0)["a"], update["a"])


def test_krums_scores_by_hand() -> None:
    """On a line at 0, 1, 3, 4, 100 with f = 1: two neighbours count.

    0: 1 + 9, 1: 1 + 4, 3: 1 + 4, 4: 1 + 9, 100: 96^2 + 97^2 = 18625.
    """
    distances = squared_distances(points(*([x, 0.0] for x in (0, 1, 3, 4, 100))))
    assert krum_scores(distances, 1).tolist() == [10, 5, 5, 10, 18625]
    with pytest.raises(ValueError, match="2 malicious sites needs 7 updates, got 5"):
        krum_scores(distances, 2)


def test_distances_are_numpys() -> None:
    updates = random_updates(4)
    flat = np.stack([np.concatenate([u["a"].flatten(), u["b"]]) for u in updates]).astype(float)
    expected = ((flat[:, None] - flat[None]) ** 2).sum(-1)
    np.testing.assert_allclose(squared_distances(updates), expected, rtol=1e-12)


def test_cosines_by_hand() -> None:
    """Directions (1, 0), (0, 1), (-1, 0), whatever their lengths.

    The others' mean of the first is (-1/2, 1/2): cosine -1 / sqrt 2. Of the second it is zero,
    which is no direction. The third: (1/2, 1/2), cosine -1 / sqrt 2.
    """
    updates = points([2.0, 0.0], [0.0, 3.0], [-500.0, 0.0])
    expected = [pytest.approx(-(0.5**0.5)), None, pytest.approx(-(0.5**0.5))]
    assert cosines_to_others(ZERO, updates, "mean") == expected
    assert cosines_to_others(ZERO, updates, "median") == expected  # of two, the median is the mean


def test_a_tensor_without_axes_is_one_coordinate_in_every_rule() -> None:
    """FedMPT's head has a scale of shape (): (3, 4) as one vector and as two numbers."""
    start = {"a": torch.zeros(()), "b": torch.zeros(1)}
    steps = ((3.0, 4.0), (4.0, 3.0), (-3.0, -4.0), (0.0, 1.0), (1.0, 1.0))
    updates = [{"a": torch.tensor(a), "b": torch.tensor([b])} for a, b in steps]
    flat = points(*[list(step) for step in steps])
    assert cosines_to_others(start, updates, "median") == pytest.approx(
        cosines_to_others(ZERO, flat, "median")
    )
    torch.testing.assert_close(squared_distances(updates), squared_distances(flat))
    for joined in (coordinate_median(updates), trimmed_mean(updates, 1)):
        assert joined["a"].shape == ()
    assert clip_update(start, updates[0], 1.0)["a"] == pytest.approx(0.6)


def test_a_site_that_did_not_move_has_no_direction() -> None:
    updates = points([1.0, 0.0], [0.0, 0.0], [2.0, 0.0])
    assert cosines_to_others(ZERO, updates, "mean") == [1.0, None, 1.0]


def test_the_order_of_the_sites_changes_no_bit() -> None:
    updates = random_updates(5)
    start = {"a": torch.zeros(3, 5), "b": torch.zeros(7)}
    expected = None
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 7):
        shuffled = [updates[i] for i in order]
        scores = krum_scores(squared_distances(shuffled), 1)
        cosines = cosines_to_others(start, shuffled, "median")
        back = [order.index(i) for i in range(5)]
        got = (
            coordinate_median(shuffled)["a"].tolist(),
            trimmed_mean(shuffled, 1)["b"].tolist(),
            [float(scores[i]) for i in back],
            [cosines[i] for i in back],
        )
        expected = expected or got
        assert got == expected
