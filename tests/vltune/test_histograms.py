import numpy as np
import pytest
import torch

from vltune.histograms import (
    HistogramError,
    ScoreHistograms,
    mean_average_precision_from,
    score_histograms,
)
from vltune.metrics import multilabel_metrics


def site(seed: int, N: int = 200, C: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((N, C)) < rng.uniform(0.02, 0.15, C)).astype(np.int8)
    logits = -3 + labels * rng.uniform(1, 4, C) + rng.normal(0, 1.2, (N, C))
    return 1 / (1 + np.exp(-logits)), labels


def released(labels: np.ndarray, min_cell: int) -> np.ndarray:
    """Labels with the cells that the site withholds made unknown."""
    few = np.minimum((labels == 1).sum(0), (labels == 0).sum(0)) < min_cell
    return np.where(few, -1, labels).astype(np.int8)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("min_cell", [1, 5])
def test_global_map_is_within_two_thousandths_of_the_pooled_value(seed: int, min_cell: int) -> None:
    sites = [site(10 * seed + number) for number in range(4)]
    histograms = [score_histograms(scores, labels, min_cell=min_cell) for scores, labels in sites]
    pooled = multilabel_metrics(
        np.concatenate([scores for scores, _ in sites]),
        np.concatenate([released(labels, min_cell) for _, labels in sites]),
        0.5,
    )
    found, per_class = mean_average_precision_from(histograms)
    assert found == pytest.approx(pooled.mAP, abs=0.002)
    assert np.nanmax(np.abs(per_class - pooled.per_class_ap)) < 0.02


def test_small_counts_are_withheld_and_counted() -> None:
    scores, labels = site(1)
    histograms = score_histograms(scores, labels, min_cell=5)
    few = (released(labels, 5) == -1).all(axis=0)
    assert histograms.num_withheld == few.sum() > 0
    for c in np.flatnonzero(few):
        assert histograms.class_offsets[c] == histograms.class_offsets[c + 1]


def test_no_interval_describes_fewer_images_than_asked() -> None:
    scores, labels = site(2)
    histograms = score_histograms(scores, labels, min_cell=5, min_interval=7)
    assert (histograms.positives + histograms.negatives).min() >= 7
    shown = histograms.class_offsets[1:] > histograms.class_offsets[:-1]
    assert histograms.positives.sum() == labels[:, shown].sum()


def test_unknown_labels_are_not_counted() -> None:
    scores, labels = site(3)
    labels[:50] = -1
    histograms = score_histograms(scores, labels, min_cell=1)
    shown = histograms.class_offsets[1:] > histograms.class_offsets[:-1]
    counted = histograms.positives.sum() + histograms.negatives.sum()
    assert counted == (labels[:, shown] >= 0).sum()


def test_wire_form_is_int32_and_comes_back_whole() -> None:
    histograms = score_histograms(*site(4))
    tensors = histograms.to_tensors()
    assert {value.dtype for value in tensors.values()} == {torch.int32}
    again = ScoreHistograms.from_tensors(tensors, "site-1")
    for name in tensors:
        assert np.array_equal(getattr(again, name), getattr(histograms, name))
    assert mean_average_precision_from([again])[0] == mean_average_precision_from([histograms])[0]


def test_a_class_that_nobody_released_is_nan() -> None:
    scores, labels = site(5)
    labels[:, 2] = 0
    found, per_class = mean_average_precision_from([score_histograms(scores, labels)])
    assert np.isnan(per_class[2])
    assert np.isfinite(found)


def broken(change: str) -> dict[str, torch.Tensor]:
    tensors = score_histograms(*site(6, C=5)).to_tensors()
    if change == "missing":
        del tensors["lows"]
    elif change == "float":
        tensors["positives"] = tensors["positives"].float()
    elif change == "negative":
        tensors["negatives"][0] = -1
    elif change == "offsets":
        tensors["class_offsets"][-1] += 1
    elif change == "grid":
        tensors["highs"][0] = 10**6
    elif change == "order":
        tensors["lows"][1], tensors["highs"][1] = tensors["lows"][0], tensors["highs"][0]
    elif change == "length":
        tensors["positives"] = tensors["positives"][:-1]
    return tensors


@pytest.mark.parametrize(
    "change", ["missing", "float", "negative", "offsets", "grid", "order", "length"]
)
def test_contradictory_tensors_are_refused_with_their_source(change: str) -> None:
    with pytest.raises(HistogramError, match="site-9"):
        ScoreHistograms.from_tensors(broken(change), "site-9")


@pytest.mark.parametrize(
    ("scores", "labels", "options"),
    [(np.full((2, 2), 1.5), np.zeros((2, 2), np.int8), {}),
     (np.full((2, 2), np.nan), np.zeros((2, 2), np.int8), {}),
     (np.zeros((2, 2)), np.zeros((2, 3), np.int8), {}),
     (np.zeros((2, 2)), np.zeros((2, 2), np.int8), {"min_cell": 0})],
)  # fmt: skip
def test_bad_input_is_refused(scores: np.ndarray, labels: np.ndarray, options: dict) -> None:
    with pytest.raises(HistogramError):
        score_histograms(scores, labels, **options)


def test_sites_of_other_class_lists_do_not_mix() -> None:
    with pytest.raises(HistogramError, match="same classes"):
        mean_average_precision_from([score_histograms(*site(7)), score_histograms(*site(8, C=61))])
