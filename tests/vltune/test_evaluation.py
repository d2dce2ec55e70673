import numpy as np
import pytest
import torch
from torch import Tensor

from vltune.evaluation import evaluate_scores, predict_scores
from vltune.histograms import HistogramError, mean_average_precision_from, score_histograms
from vltune.metrics import multilabel_metrics


def scores_and_labels(size: int = 23, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    labels = rng.integers(-1, 2, (size, classes)).astype(np.int8)
    return rng.random((size, classes)), labels


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_scores_are_sigmoids_in_the_order_of_the_examples(batch_size: int) -> None:
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    asked: list[Tensor] = []

    def logits_of(rows: Tensor) -> Tensor:
        asked.append(rows)
        return logits[rows]

    scores = predict_scores(logits_of, 7, batch_size)
    assert scores.dtype == np.float64
    wanted = torch.sigmoid(logits).double().numpy()
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-7)
    assert torch.cat(asked).tolist() == list(range(7))
    assert max(map(len, asked)) <= batch_size


def test_prediction_asks_for_no_gradient() -> None:
    weight = torch.ones(2, requires_grad=True)
    kept = []

    def logits_of(rows: Tensor) -> Tensor:
        kept.append(rows.unsqueeze(-1) * weight)
        return kept[-1]

    predict_scores(logits_of, 3)
    assert not kept[0].requires_grad


def test_a_split_without_examples_has_no_metrics() -> None:
    scores = predict_scores(lambda rows: torch.zeros(len(rows), 2), 0)
    assert scores.shape == (0, 2)
    with pytest.raises(ValueError, match="N >= 1"):
        evaluate_scores(scores, np.zeros((0, 2), dtype=np.int8), min_cell=1)


def test_evaluation_is_metrics_and_histograms_of_the_same_scores() -> None:
    scores, labels = scores_and_labels()
    result = evaluate_scores(scores, labels, threshold=0.7, min_cell=3)
    wanted = multilabel_metrics(scores, labels, 0.7)
    assert (result.metrics.mAP, result.metrics.CF1, result.metrics.OF1) == (
        wanted.mAP,
        wanted.CF1,
        wanted.OF1,
    )
    tensors = score_histograms(scores, labels, min_cell=3).to_tensors()
    for name, value in result.histograms.to_tensors().items():
        assert torch.equal(value, tensors[name])
    merged = evaluate_scores(scores, labels, min_cell=3, min_interval=3).histograms
    assert (merged.positives + merged.negatives).min() >= 3
    pooled, _ = mean_average_precision_from([result.histograms])
    assert pooled == pytest.approx(wanted.mAP, abs=0.002)


def test_metrics_by_hand() -> None:
    """Two classes, threshold 0.5.

    Class 0: scores .9 .6 .2, labels 1 0 1 -> AP = 1/2 * 1 + 1/2 * 2/3 = 5/6; 1 of 2 claims right,
    1 of 2 found. Class 1: .1 .8 .7, labels 0 1 unknown -> AP = 1; 1 of 1 right, 1 of 1 found.
    CF1: precision (1/2 + 1) / 2 = recall = 3/4. OF1: precision 2/3 = recall.
    """
    scores = np.array([[0.9, 0.1], [0.6, 0.8], [0.2, 0.7]])
    labels = np.array([[1, 0], [0, 1], [1, -1]], dtype=np.int8)
    metrics = evaluate_scores(scores, labels, min_cell=1).metrics
    assert metrics.mAP == pytest.approx((5 / 6 + 1) / 2)
    assert pytest.approx(3 / 4) == metrics.CF1
    assert pytest.approx(2 / 3) == metrics.OF1
    assert (metrics.num_classes_scored, metrics.num_examples) == (2, 3)


def test_small_classes_are_withheld_from_the_histograms_only() -> None:
    """Class 1 has 2 images that show it: fewer than min_cell = 3."""
    scores, _ = scores_and_labels(9, 2)
    labels = np.array([[1, 0]] * 4 + [[0, 0]] * 3 + [[0, 1]] * 2, dtype=np.int8)
    result = evaluate_scores(scores, labels, min_cell=3)
    assert result.metrics.num_classes_scored == 2
    assert result.histograms.num_withheld == 1
    offsets = result.histograms.class_offsets
    assert offsets[1] > 0
    assert offsets[2] == offsets[1]
    assert evaluate_scores(scores, labels, min_cell=2).histograms.num_withheld == 0


def test_scores_that_are_no_probabilities_are_refused() -> None:
    scores, labels = scores_and_labels()
    for wrong in (np.nan, np.inf):
        with pytest.raises(ValueError, match="not finite"):
            evaluate_scores(np.where(scores > 0.9, wrong, scores), labels, min_cell=1)
    with pytest.raises(HistogramError, match="probabilities"):
        evaluate_scores(scores + 1, labels, min_cell=1)
    with pytest.raises(ValueError, match="expected scores and labels"):
        evaluate_scores(scores[:3], labels, min_cell=1)
    with pytest.raises(ValueError, match="labels must be"):
        evaluate_scores(scores, labels + 1, min_cell=1)
