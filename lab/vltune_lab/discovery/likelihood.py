"""Scores axes and class pairs by how likely a language model finds class names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vltune_lab.discovery.axes import NEUTRAL, Axis
from vltune_lab.discovery.small_model import LikelihoodModel

PAIR_PREFIX = "A photo of a {name} and a"
PAIR_NEUTRAL = "A photo of a"

Array = NDArray[np.float64]


@dataclass(frozen=True)
class AxisScore:
    """An axis with its score, and why it was refused (empty if it was not)."""

    axis: Axis
    score: float
    reason: str

    def record(self) -> dict[str, Any]:
        """Return it as `made_by` holds it."""
        return {
            "name": self.axis.name,
            "gloss": self.axis.gloss,
            "template": self.axis.template,
            "values": list(self.axis.values),
            "control": self.axis.is_control,
            "score": round(self.score, 4),
            "reason": self.reason,
        }


def pmi_profiles(
    model: LikelihoodModel,
    axis: Axis,
    classnames: Sequence[str],
    neutral: Array,
    progress: Callable[[], None],
) -> Array:
    r"""Pointwise mutual information of classes and an axis's values, centred for each class.

        pmi(v, c) = log p(c | template(v)) - log p(c | neutral),   s(v, c) = pmi(v, c) - mean_v pmi.

    Args:
        model: Language model.
        axis: V values.
        classnames: C names.
        neutral: `neutral_likelihood` of them, (C,).
        progress: Called after each value.

    Returns:
        s, (V, C), nats, columns of mean 0. The neutral term is the same for all v, so it drops out
        of s; it makes `pmi` itself comparable between classes.
    """
    texts = [" " + name for name in classnames]
    rows = []
    for prefix in axis.prefixes():
        rows.append(model.log_likelihood(prefix, texts))
        progress()
    return centre(np.stack(rows) - neutral)


def neutral_likelihood(model: LikelihoodModel, classnames: Sequence[str]) -> Array:
    """Return log p(c | neutral) of each class, (C,), nats."""
    return model.log_likelihood(NEUTRAL, [" " + name for name in classnames])


def centre(pmi: Array) -> Array:
    """Subtract from each column (class) its mean over the rows (values)."""
    return pmi - pmi.mean(axis=0, keepdims=True)


def axis_information(profiles: Array) -> float:
    r"""How far classes tell the value: normalised mutual information under the softmax.

    With each class equally likely and H the entropy:

        p(v | c) = exp s(v, c) / sum_u exp s(u, c),   p(v) = mean_c p(v | c),
        I = (H(p(v)) - mean_c H(p(v | c))) / log V.

    0 if all classes have the same profile, 1 if each class has one value and values are even.

    Args:
        profiles: s, (V, C), V >= 2; adding a constant to a column changes nothing.
    """
    shifted = np.exp(profiles - profiles.max(axis=0, keepdims=True))
    conditional = shifted / shifted.sum(axis=0, keepdims=True)
    information = _entropy(conditional.mean(axis=1)) - _entropy(conditional).mean()
    return float(max(0.0, information) / np.log(len(profiles)))


def rank_axes(scored: Sequence[tuple[Axis, float]]) -> list[AxisScore]:
    """Rank axes by score (ties: by name) and refuse those not above every control.

    Args:
        scored: Axes and controls with their `axis_information`.

    Returns:
        All, best first; a control has a reason always.
    """
    bar = max((score for axis, score in scored if axis.is_control), default=0.0)
    ranked = []
    for axis, score in sorted(scored, key=lambda pair: (-pair[1], pair[0].name)):
        reason = "control" if axis.is_control else "" if score > bar else "not above every control"
        ranked.append(AxisScore(axis, score, reason))
    return ranked


def profile_affinity(profiles: Array) -> Array:
    r"""Affinity of two classes: correlation of their profiles over an axis's values.

    Rows are centred too, as a value that makes every class likelier tells nothing of a pair:

        t(v, c) = s(v, c) - mean_c s(v, c),   A(c, d) = <t_c, t_d> / (|t_c| |t_d|).

    Args:
        profiles: s, (V, C), columns of mean 0.

    Returns:
        A, (C, C), in [-1, 1], symmetric; a class without a profile (t_c = 0) has 0 with all.
    """
    t = profiles - profiles.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(t, axis=0)
    unit = np.divide(t, norms, out=np.zeros_like(t), where=norms > 1e-12)
    affinity: Array = np.clip(unit.T @ unit, -1.0, 1.0)
    return affinity


def pair_affinity(
    model: LikelihoodModel, classnames: Sequence[str], progress: Callable[[], None]
) -> Array:
    r"""Affinity of two classes: how far naming one makes the other likelier.

        a(c, d) = log p(d | "A photo of a c and a") - log p(d | "A photo of a"),
        A(c, d) = (a(c, d) + a(d, c)) / 2.

    Args:
        model: Language model.
        classnames: C names; C^2 likelihoods are computed.
        progress: Called after each of C texts.

    Returns:
        A, (C, C), nats, symmetric; the diagonal holds names repeated and means nothing.
    """
    texts = [" " + name for name in classnames]
    rows = []
    for name in classnames:
        rows.append(model.log_likelihood(PAIR_PREFIX.format(name=name), texts))
        progress()
    a = np.stack(rows) - model.log_likelihood(PAIR_NEUTRAL, texts)
    affinity: Array = (a + a.T) / 2
    return affinity


def without_class_means(affinity: Array) -> Array:
    r"""Take out of a pair affinity what each class has with all others.

    With m(c) the mean of A(c, d) over d != c:   A'(c, d) = A(c, d) - m(c) - m(d).

    A name that becomes likelier after any other ("person") is else near to all.

    Args:
        affinity: A, (C, C), symmetric, C >= 2; its diagonal is not looked at.

    Returns:
        A', (C, C), symmetric, zeros on the diagonal.
    """
    others = affinity * (1 - np.eye(len(affinity)))
    means = others.sum(axis=1) / (len(affinity) - 1)
    result: Array = others - means[:, None] - means[None, :]
    np.fill_diagonal(result, 0.0)
    return result


def _entropy(p: Array) -> Array:
    """Entropy in nats over the first axis; 0 log 0 is 0."""
    logs = np.log(p, out=np.zeros_like(p), where=p > 0)
    entropy: Array = -(p * logs).sum(axis=0)
    return entropy
