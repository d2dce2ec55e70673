r"""Means that a few bad updates cannot move far, as pure functions on lists of tensors.

An update is a site's shared tensors by name, x_s; all have the same names and shapes. Everything is
calculated in fp64, tensor by tensor, so that no update is copied into one long vector.

    median:        each coordinate the median of the sites' (Yin et al. 2018, arXiv 1803.01498)
    trimmed mean:  each coordinate the mean without the f smallest and the f largest (the same)
    Krum:          s(i) = sum over the S - f - 2 nearest j of |x_i - x_j|^2; the x_i of the lowest
                   s(i), S >= 2f + 3 (Blanchard et al. 2017, arXiv 1703.02757)
    clipping:      x_0 + min(1, c / |x_s - x_0|) (x_s - x_0) (Sun et al. 2019, arXiv 1911.07963)

`robust_aggregation` chooses among them. The order of the sites changes no bit of any result but the
weighted mean's.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

Update = Mapping[str, Tensor]
Centre = Literal["mean", "median"]


def weighted_mean(updates: Sequence[Update], weights: Sequence[float]) -> dict[str, Tensor]:
    """Mean in fp64, in the order given, rounded to fp32 once at the end."""
    total = float(sum(weights))
    mean = {}
    for name in sorted(updates[0]):
        accumulated = torch.zeros_like(updates[0][name], dtype=torch.float64)
        for tensors, weight in zip(updates, weights, strict=True):
            accumulated += tensors[name].double() * weight
        mean[name] = (accumulated / total).float()
    return mean


def coordinate_median(
    updates: Sequence[Update], weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """The median of each coordinate.

    The middle value, or the mean of the two middle ones. With weights, the value at which half of
    the weight is reached, or its mean with the next where it is reached exactly; equal weights give
    the same as none.

    Args:
        updates: One a site, at least one.
        weights: One a site, > 0.

    Returns:
        By name, fp32.
    """
    total = [1.0] * len(updates) if weights is None else weights
    return {
        name: _median(_stack(updates, name), torch.tensor(total, dtype=torch.float64)).float()
        for name in sorted(updates[0])
    }


def trimmed_mean(updates: Sequence[Update], num_cut: int) -> dict[str, Tensor]:
    """The mean of each coordinate without the `num_cut` smallest and largest values, fp32.

    Raises:
        ValueError: No value would be left.
    """
    kept = len(updates) - 2 * num_cut
    if num_cut < 0 or kept < 1:
        raise ValueError(
            f"cannot cut {num_cut} values at each end of {len(updates)}; expected 0 <= cut < S / 2"
        )
    return {
        name: _stack(updates, name).sort(dim=0).values[num_cut : num_cut + kept].mean(dim=0).float()
        for name in sorted(updates[0])
    }


def update_norms(reference: Update, updates: Sequence[Update]) -> list[float]:
    """Euclidean norm of each update's distance from the model that was sent out."""
    return [float(_squared_distance(update, reference) ** 0.5) for update in updates]


def clip_update(reference: Update, update: Update, limit: float) -> dict[str, Tensor]:
    """The update, moved towards `reference` until it is no further than `limit` away; fp32.

    An update within the limit comes back as it is.
    """
    norm = update_norms(reference, [update])[0]
    if norm <= limit:
        return dict(update)
    scale = limit / norm
    return {
        name: (start.double() + scale * (update[name].double() - start.double())).float()
        for name, start in reference.items()
    }


def squared_distances(updates: Sequence[Update]) -> Tensor:
    """Squared Euclidean distance of every two updates, (S, S) fp64, symmetric to the bit."""
    count = len(updates)
    distances = torch.zeros(count, count, dtype=torch.float64)
    for i in range(count):
        for j in range(i):
            distances[i, j] = distances[j, i] = _squared_distance(updates[i], updates[j])
    return distances


def krum_scores(distances: Tensor, num_malicious: int) -> Tensor:
    """Krum's score of each update: the sum of the squared distances to its nearest neighbours.

    Args:
        distances: Squared, (S, S).
        num_malicious: f; S - f - 2 neighbours count.

    Returns:
        (S,) fp64, lower is better.

    Raises:
        ValueError: S < 2f + 3, where Krum promises nothing.
    """
    count = len(distances)
    if num_malicious < 0 or count < 2 * num_malicious + 3:
        raise ValueError(
            f"Krum with {num_malicious} malicious sites needs {2 * num_malicious + 3} updates, got "
            f"{count}"
        )
    # The first of each sorted row is the update itself, at distance zero.
    nearest = distances.sort(dim=1).values[:, 1 : count - num_malicious - 1]
    return nearest.sum(dim=1)


def cosines_to_others(
    reference: Update, updates: Sequence[Update], centre: Centre
) -> list[float | None]:
    """Cosine of each update's direction with the centre of all others' directions.

    Directions are (x_s - x_0) / |x_s - x_0|: with the updates themselves, one that is large enough
    would turn the centre of all others. Own rule; no root data set at the server is needed.

    Args:
        reference: The model that was sent out, x_0.
        updates: One a site, at least two.
        centre: Mean or coordinate-wise median of the others' directions.

    Returns:
        One a site, in [-1, 1]; None for an update that did not move, or whose others have no common
        direction.
    """
    norms = update_norms(reference, updates)
    scales = torch.tensor([1 / norm if norm > 0 else 0.0 for norm in norms], dtype=torch.float64)
    products, squares = [0.0] * len(updates), [0.0] * len(updates)
    for name, start in reference.items():
        moved = _stack(updates, name) - start.double()
        # Not flatten(1): a tensor may be a single number without axes.
        directions = moved.reshape(len(updates), -1) * scales[:, None]
        for s in range(len(updates)):
            others = torch.cat([directions[:s], directions[s + 1 :]])
            # In sorted order, so that the order of the sites cannot change a bit.
            others = others.sort(dim=0).values
            middle = others.mean(dim=0) if centre == "mean" else _middle(others)
            products[s] += float(directions[s] @ middle)
            squares[s] += float(middle @ middle)
    return [
        max(-1.0, min(1.0, product / square**0.5)) if norm > 0 and square > 0 else None
        for product, square, norm in zip(products, squares, norms, strict=True)
    ]


def _stack(updates: Sequence[Update], name: str) -> Tensor:
    return torch.stack([update[name].double() for update in updates])  # (S, ...)


def _squared_distance(first: Update, second: Update) -> float:
    return sum(
        float((first[name].double() - second[name].double()).square().sum())
        for name in sorted(first)
    )


def _middle(ascending: Tensor) -> Tensor:
    """Median over the first axis of sorted values, without weights."""
    count = len(ascending)
    return (ascending[(count - 1) // 2] + ascending[count // 2]) / 2


def _median(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted median over the first axis, (S, ...) and (S,) to (...)."""
    ascending, order = values.sort(dim=0)
    reached = weights[order].cumsum(dim=0)
    half = reached[-1] / 2
    lower = (reached < half).sum(dim=0, keepdim=True)
    upper = (reached <= half).sum(dim=0, keepdim=True)
    return ((ascending.gather(0, lower) + ascending.gather(0, upper)) / 2).squeeze(0)
