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


def error_of_cells(seed: int, min_interval: int) -> float:
    """Global mAP of four sites of 150 to 300 images less the pooled value."""
    sizes = np.random.default_rng(seed).integers(150, 301, 4)
    sites = [site(100 * seed + number, N=int(N)) for number, N in enumerate(sizes)]
    found, _ = mean_average_precision_from(
        [score_histograms(*pair, min_interval=min_interval) for pair in sites]
    )
    pooled = multilabel_metrics(
        np.concatenate([scores for scores, _ in sites]),
        np.concatenate([released(labels, 5) for _, labels in sites]),
        0.5,
    )
    return found - pooled.mAP


@pytest.mark.slow
def test_the_jobs_intervals_of_three_are_within_two_thousandths() -> None:
    errors = np.array([error_of_cells(seed, min_interval=3) for seed in range(6)])
    assert np.abs(errors).max() < 0.002


@pytest.mark.slow
def test_intervals_of_five_images_cost_little_accuracy() -> None:
    """Without the model of what stands where inside an interval the error is some -0.03."""
    errors = np.array([error_of_cells(seed, min_interval=5) for seed in range(8)])
    assert np.sqrt((errors**2).mean()) < 0.002
    assert np.abs(errors).max() < 0.004


def test_pooled_ap_is_exact_on_the_whole_grid() -> None:
    """With ties inside and across sites; fp32 probabilities, as sites have them."""
    sites = [site(20 + number, N=70, C=13) for number in range(3)]
    sites = [(np.round(s, 2 + number), labels) for number, (s, labels) in enumerate(sites)]
    sites = [(s.astype(np.float32).astype(np.float64), labels) for s, labels in sites]
    found, per_class = mean_average_precision_from(
        [score_histograms(*pair, min_cell=1, num_bins=2**30) for pair in sites]
    )
    pooled = multilabel_metrics(
        np.concatenate([scores for scores, _ in sites]),
        np.concatenate([released(labels, 1) for _, labels in sites]),
        0.5,
    )
    assert found == pytest.approx(pooled.mAP, abs=1e-12)
    assert np.allclose(per_class, pooled.per_class_ap, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("min_interval", [1, 5])
def test_order_of_sites_does_not_matter(min_interval: int) -> None:
    histograms = [score_histograms(*site(30 + n, C=7), min_interval=min_interval) for n in range(3)]
    assert mean_average_precision_from(histograms)[0] == pytest.approx(
        mean_average_precision_from(histograms[::-1])[0], abs=0
    )


def test_edges_by_hand() -> None:
    """Of 16 bins over logits -16 to 16, images at 10 10 9, 6 5 3, 2 2 0; three an interval.

    Between 9 and 6 the roundest boundary is 8; between 3 and 2 there is only 3. Above 10, one span
    (1) away: 11. Below 0 there is nothing.
    """
    bins = np.array([10, 10, 9, 6, 5, 3, 2, 2, 0])
    scores = 1 / (1 + np.exp(-(2.0 * bins - 15)))
    labels = np.array([1, 1, 0, 1, 0, 0, 0, 1, 0], dtype=np.int8)
    histograms = score_histograms(
        scores[:, np.newaxis], labels[:, np.newaxis], min_cell=3, min_interval=3, num_bins=16
    )
    step = 2**26
    assert histograms.lows.tolist() == [8 * step, 3 * step, 0]
    assert histograms.highs.tolist() == [11 * step - 1, 8 * step - 1, 3 * step - 1]
    assert histograms.positives.tolist() == [2, 1, 1]
    assert histograms.negatives.tolist() == [1, 2, 2]


def test_merged_intervals_carry_the_precision_of_their_class() -> None:
    """Ranked 1 0 1: AP = (1 + 2/3) / 2 = 0.8333; not reported for fewer positives than images."""
    scores, labels = np.array([[0.9], [0.8], [0.7]]), np.array([[1], [0], [1]], dtype=np.int8)
    two = score_histograms(scores, labels, min_cell=1, min_interval=2)
    assert two.average_precisions is not None
    assert two.average_precisions.tolist() == [833]
    three = score_histograms(scores, labels, min_cell=1, min_interval=3)
    assert three.average_precisions is not None
    assert three.average_precisions.tolist() == [-1]
    assert "average_precisions" not in score_histograms(scores, labels, min_cell=1).to_tensors()


def test_edges_are_round_so_that_they_tell_little_about_scores() -> None:
    """On the whole grid of 2^30 most edges need 11 bits or fewer."""
    histograms = score_histograms(*site(8), min_interval=5, num_bins=2**30)
    edges = np.concatenate([histograms.lows, histograms.highs + 1])
    edges = edges[edges > 0]
    assert np.median(edges & -edges) >= 2**19


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


@pytest.mark.parametrize("min_interval", [1, 5])
def test_wire_form_is_int32_and_comes_back_whole(min_interval: int) -> None:
    histograms = score_histograms(*site(4), min_interval=min_interval)
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
    positives, negatives = tensors["positives"], tensors["negatives"]
    changed = {
        "missing": {"lows": None},
        "unknown": {"scores": torch.zeros(5, dtype=torch.int32)},
        "float": {"positives": positives.float()},
        "nan": {"positives": torch.full(positives.shape, torch.nan)},
        "length": {"positives": positives[:-1]},
        "negative": {"negatives": set_first(negatives, -1)},
        "offsets": {"class_offsets": tensors["class_offsets"] + 1},
        "grid": {"highs": set_first(tensors["highs"], 2**30)},
        "order": {"lows": tensors["lows"].flip(0), "highs": tensors["highs"].flip(0)},
        "no image": {"positives": set_first(positives, 0), "negatives": set_first(negatives, 0)},
        "no positive": {"positives": positives * 0, "negatives": negatives + positives},
        "too many": {"negatives": set_first(negatives, 2**31 - 1)},
        "precision": {"average_precisions": torch.full((5,), 1001, dtype=torch.int32)},
        "precisions": {"average_precisions": torch.zeros(4, dtype=torch.int32)},
    }[change]
    return {name: value for name, value in (tensors | changed).items() if value is not None}


def set_first(values: torch.Tensor, value: int) -> torch.Tensor:
    values = values.clone()
    values[0] = value
    return values


CHANGES = ["missing", "unknown", "float", "nan", "length", "negative", "offsets", "grid", "order"]
CHANGES += ["no image", "no positive", "too many", "precision", "precisions"]


@pytest.mark.parametrize("change", CHANGES)
def test_contradictory_tensors_are_refused_with_their_source(change: str) -> None:
    with pytest.raises(HistogramError, match="site-9"):
        ScoreHistograms.from_tensors(broken(change), "site-9")


@pytest.mark.parametrize(
    ("scores", "labels", "options"),
    [(np.full((2, 2), 1.5), np.zeros((2, 2), np.int8), {}),
     (np.full((2, 2), np.nan), np.zeros((2, 2), np.int8), {}),
     (np.zeros((2, 2)), np.zeros((2, 3), np.int8), {}),
     (np.zeros((2, 2)), np.zeros((2, 2), np.int8), {"min_cell": 0}),
     (np.zeros((2, 2)), np.zeros((2, 2), np.int8), {"num_bins": 1000})],
)  # fmt: skip
def test_bad_input_is_refused(scores: np.ndarray, labels: np.ndarray, options: dict) -> None:
    with pytest.raises(HistogramError):
        score_histograms(scores, labels, **options)


def test_sites_of_other_class_lists_do_not_mix() -> None:
    with pytest.raises(HistogramError, match="same classes"):
        mean_average_precision_from([score_histograms(*site(7)), score_histograms(*site(8, C=61))])
