"""How far an aggregation is from the mean of the sites' weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vltune.lora_factors import Factors, LoraError
from vltune.low_rank import LowRankSum


@dataclass(frozen=True)
class Exactness:
    """Relative error of the aggregated product: |mean(B_s A_s) - result|_F / |mean(B_s A_s)|_F.

    Attributes:
        overall: Over all modules together.
        per_module: By module. 0 where nothing differs; infinite where the mean is zero and the
            result is not.
    """

    overall: float
    per_module: dict[str, float]


def exactness_error(
    updates: Sequence[Mapping[str, Factors]],
    weights: Sequence[float],
    aggregated: Mapping[str, Factors],
) -> Exactness:
    """Measure any aggregation of which all factors are known: at the server, or in a benchmark.

    Args:
        updates: Factors of each site by module; ranks may differ.
        weights: One a site, > 0; only their ratios count.
        aggregated: What the aggregation made of them, by module.

    Raises:
        LoraError: No update, another number of weights, a weight <= 0, or other modules.
    """
    if not updates or len(updates) != len(weights):
        raise LoraError(f"expected a weight for each update, got {len(updates)}, {len(weights)}")
    if not all(weight > 0 and math.isfinite(weight) for weight in weights):
        raise LoraError(f"expected weights > 0, got {list(weights)}")
    for number, update in enumerate(updates):
        if update.keys() != aggregated.keys():
            difference = sorted(update.keys() ^ aggregated.keys())
            raise LoraError(f"update {number} and the result differ in modules: {difference}")
    total = sum(weights)
    means, errors = {}, {}
    for module, result in aggregated.items():
        mean = LowRankSum(result.b.shape[0], result.a.shape[1])
        for update, weight in zip(updates, weights, strict=True):
            mean.add(update[module].b, update[module].a, weight / total)
        means[module], errors[module] = mean, LowRankSum(*mean.shape)
        errors[module].add_sum(mean)
        errors[module].add(result.b, result.a, -1.0)
    return relative_error(means, errors)


def relative_error(means: Mapping[str, LowRankSum], errors: Mapping[str, LowRankSum]) -> Exactness:
    """Norms of `errors` over those of `means`, by module and together."""
    mean_norms = {module: means[module].norm() for module in sorted(means)}
    error_norms = {module: errors[module].norm() for module in sorted(means)}
    return Exactness(
        _ratio(math.hypot(*error_norms.values()), math.hypot(*mean_norms.values())),
        {module: _ratio(error_norms[module], mean_norms[module]) for module in mean_norms},
    )


def exact(modules: Sequence[str]) -> Exactness:
    """No error, of a mode that has none by construction."""
    return Exactness(0.0, dict.fromkeys(sorted(modules), 0.0))


def _ratio(error: float, norm: float) -> float:
    if norm:
        return error / norm
    return math.inf if error else 0.0
