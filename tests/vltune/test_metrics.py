import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from vltune.metrics import average_precision, choose_threshold, multilabel_metrics


def federation(seed: int, N: int = 97, C: int = 13) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((N, C)) < 0.2).astype(np.int8)
    scores = np.clip(rng.normal(0.3 + 0.2 * labels, 0.2), 0, 1)
    return np.round(scores, 2), labels  # rounding makes ties


def test_average_precision_by_hand() -> None:
    """Ranked: hit, miss, hit. AP = (1/1 + 2/3) / 2 = 5/6; unknown labels do not count."""
    assert average_precision(
        np.array([0.9, 0.8, 0.7, 0.95]), np.array([1, 0, 1, -1], dtype=np.int8)
    ) == pytest.approx(5 / 6)


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_scikit_learn_on_ties(seed: int) -> None:
    scores, labels = federation(seed)
    ours = multilabel_metrics(scores, labels, 0.5)
    assert ours.mAP == pytest.approx(
        average_precision_score(labels, scores, average="macro"), abs=1e-12
    )
    assert pytest.approx(f1_score(labels, scores >= 0.5, average="micro"), abs=1e-12) == ours.OF1
    assert (ours.num_examples, ours.num_classes_scored) == (97, 13)


def test_cf1_by_hand() -> None:
    """Class 0: precision 1, recall 1/2. Class 1: precision 1/2, recall 1.

    Means 3/4 and 3/4: CF1 = 3/4. Over all: 2 hits of 3 predictions and 3 truths: OF1 = 2/3.
    """
    scores = np.array([[0.9, 0.1], [0.1, 0.8], [0.2, 0.9]])
    labels = np.array([[1, 0], [1, 1], [0, 0]], dtype=np.int8)
    metrics = multilabel_metrics(scores, labels, 0.5)
    assert pytest.approx(0.75) == metrics.CF1
    assert pytest.approx(2 / 3) == metrics.OF1


def test_class_without_positives_is_left_out_and_counted() -> None:
    scores, labels = federation(1)
    labels[:, 3] = 0
    metrics = multilabel_metrics(scores, labels, 0.5)
    assert np.isnan(metrics.per_class_ap[3])
    assert metrics.num_classes_scored == 12
    keep = np.arange(13) != 3
    assert metrics.mAP == pytest.approx(
        average_precision_score(labels[:, keep], scores[:, keep], average="macro")
    )


def test_unknown_is_not_negative() -> None:
    scores, labels = federation(2)
    masked = labels.copy()
    masked[::2, 5] = -1
    metrics = multilabel_metrics(scores, masked, 0.5)
    known = masked[:, 5] >= 0
    assert metrics.per_class_ap[5] == pytest.approx(
        average_precision_score(labels[known, 5], scores[known, 5])
    )


def test_threshold_is_the_best_candidate() -> None:
    scores, labels = federation(3)
    chosen = choose_threshold(scores, labels)
    best = multilabel_metrics(scores, labels, chosen)
    for other in (0.2, 0.5, 0.8):
        metrics = multilabel_metrics(scores, labels, other)
        assert metrics.CF1 + metrics.OF1 <= best.CF1 + best.OF1


@pytest.mark.parametrize(
    ("scores", "labels", "word"),
    [(np.zeros((2, 3)), np.zeros((3, 2), np.int8), "expected scores"),
     (np.full((2, 2), np.nan), np.zeros((2, 2), np.int8), "not finite"),
     (np.zeros((2, 2)), np.full((2, 2), 3, np.int8), "1, 0 or -1"),
     (np.zeros((0, 2)), np.zeros((0, 2), np.int8), "N >= 1")],
)  # fmt: skip
def test_bad_input_is_refused(scores: np.ndarray, labels: np.ndarray, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        multilabel_metrics(scores, labels, 0.5)
