"""Metrics of multi-label recognition; unknown labels take no part. Values in [0, 1]."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MultiLabelMetrics:
    """Metrics of one set of images.

    Attributes:
        mAP: Mean of the average precision over classes that have a positive.
        CF1: F1 of mean class precision and mean class recall, at the threshold.
        OF1: F1 over all known (image, class) pairs, at the threshold.
        per_class_ap: (C,), NaN where a class has no positive.
        num_classes_scored: Classes with a positive.
        num_examples: Images.
    """

    mAP: float
    CF1: float
    OF1: float
    per_class_ap: Floats
    num_classes_scored: int
    num_examples: int


def average_precision(scores: Floats, labels: NDArray[np.int8]) -> float:
    """Area under the precision-recall steps: sum_n (R_n - R_(n-1)) P_n, ties taken together.

    Args:
        scores: (N,), higher is more likely.
        labels: (N,), 1, 0 or -1 for unknown (left out).

    Returns:
        In [0, 1]; NaN without a positive. Equal to scikit-learn's average_precision_score.
    """
    known = labels >= 0
    scores, positive = scores[known], labels[known] == 1
    total = int(positive.sum())
    if total == 0:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    hits = np.cumsum(positive[order])[ends]
    precision = hits / (ends + 1)
    gained = np.diff(np.append(0, hits)) / total
    return float((precision * gained).sum())


def multilabel_metrics(
    scores: Floats, labels: NDArray[np.int8], threshold: float
) -> MultiLabelMetrics:
    """Compute all metrics.

    Args:
        scores: Probabilities, (N, C), finite.
        labels: (N, C), 1, 0 or -1.
        threshold: Predicted present at or above it; from configuration or validation data.

    Raises:
        ValueError: The shapes disagree, scores are not finite, or labels are none of 1, 0, -1.
    """
    _check(scores, labels)
    per_class = np.array(
        [average_precision(scores[:, c], labels[:, c]) for c in range(labels.shape[1])]
    )
    scored = np.isfinite(per_class)
    known = labels >= 0
    predicted = (scores >= threshold) & known
    correct = predicted & (labels == 1)
    hits, claims = correct.sum(axis=0), predicted.sum(axis=0)
    truths = (labels == 1).sum(axis=0)
    judged = truths > 0
    # A class that is never predicted has precision 0, as in the benchmark's own evaluation.
    precision = _mean(np.divide(hits, claims, where=claims > 0, out=np.zeros(len(hits)))[judged])
    recall = _mean(np.divide(hits, truths, where=truths > 0, out=np.zeros(len(hits)))[judged])
    return MultiLabelMetrics(
        mAP=_mean(per_class[scored]),
        CF1=_harmonic(precision, recall),
        OF1=_harmonic(_ratio(hits.sum(), claims.sum()), _ratio(hits.sum(), truths.sum())),
        per_class_ap=per_class,
        num_classes_scored=int(scored.sum()),
        num_examples=len(labels),
    )


def choose_threshold(scores: Floats, labels: NDArray[np.int8]) -> float:
    """The threshold of 0.05, 0.10 ... 0.95 with the best CF1 + OF1; only for *validation* data."""
    candidates = np.round(np.arange(0.05, 1.0, 0.05), 2)
    quality = []
    for threshold in candidates:
        metrics = multilabel_metrics(scores, labels, float(threshold))
        quality.append(metrics.CF1 + metrics.OF1)
    return float(candidates[int(np.argmax(quality))])


def _check(scores: Floats, labels: NDArray[np.int8]) -> None:
    if scores.shape != labels.shape or scores.ndim != 2 or not len(scores):
        raise ValueError(
            f"expected scores and labels (N, C) with N >= 1, got {scores.shape} and {labels.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} scores are not finite")
    strange = set(np.unique(labels).tolist()) - {-1, 0, 1}
    if strange:
        raise ValueError(f"labels must be 1, 0 or -1, got {sorted(strange)}")


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _ratio(part: int, whole: int) -> float:
    return float(part / whole) if whole else 0.0


def _harmonic(precision: float, recall: float) -> float:
    total = precision + recall
    return 2 * precision * recall / total if total > 0 else 0.0
