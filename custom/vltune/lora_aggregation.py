r"""The sites' LoRA factors to the next global ones: eight modes, one streaming interface.

With w_s the normalised weights, P = sum w_s B_s A_s and R the residual (`lora_residual`):

    fedavg, ffa, fedsa, plora: A = sum w_s A_s and/or B = sum w_s B_s
    svd:     B A = the best approximation of P of rank r, the root of its values in each factor
    fedex:   A, B as fedavg; R' = R + P - B A, so that B A + R' = sum w_s (B_s A_s + R)
    stack:   R' = R + P; the factors start again from what was sent out, whose B is zero
    hetlora: as fedavg on zero-padded factors, w_s = |B_s A_s|_F by module

`LoraSum` takes one site after the other and keeps fp64 sums, so that memory does not grow with
sites: one number a parameter; where the server needs products also a `LowRankSum` a module, which
grows up to the size of the module's weight and not beyond. `aggregate` adds in the order of the
sites' names, so that the order of arrival cannot change a bit.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vltune.lora_contract import LoraContract
from vltune.lora_exactness import Exactness, exact, relative_error
from vltune.lora_factors import Factors, LoraError, name_factors, pair_factors, parse_factor_name
from vltune.lora_modes import LoraAggregation
from vltune.lora_ranks import pad_factors, product_norm
from vltune.lora_residual import as_sum, compress, name_residual, read_residual
from vltune.low_rank import LowRankSum, split_balanced

NORM_FLOOR = 1e-12
"""Weight of a product without norm: hetlora is uniform where no site has moved yet."""


@dataclass(frozen=True)
class Aggregated:
    """The next global model.

    Attributes:
        tensors: Shared factors by wire name, CPU fp32, shaped as those that were sent out.
        residual: The residual's tensors by wire name, CPU fp32; empty for modes without.
        num_sites: Sites that took part.
        exactness: Against the mean under the mode's own weights; None where the server does not see
            both factors of each site. With a residual, of B A + R.
        residual_lost: Norm of what `max_residual_rank` cut off this round, by module.
    """

    tensors: dict[str, Tensor]
    residual: dict[str, Tensor]
    num_sites: int
    exactness: Exactness | None
    residual_lost: dict[str, float] = field(default_factory=dict)


class LoraSum:
    """Takes the sites' updates one by one; an update that is refused leaves it as it was.

    Args:
        settings: Mode and weights.
        reference: The shared factors that were sent out, by wire name: the contract of names and
            shapes, at the global rank. stack starts the next round from them.
        residual: The residual that was sent out, by wire name; only fedex and stack have one.

    Raises:
        ParameterError: The reference is not the mode's set of factors, or the residual does not fit
            it.
    """

    def __init__(
        self,
        settings: LoraAggregation,
        reference: Mapping[str, Tensor],
        residual: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.settings = settings
        self._mode = settings.description
        self._contract = LoraContract(self._mode, reference)
        self._sums = {
            name: torch.zeros(shape, dtype=torch.float64)
            for name, shape in self._contract.spec.items()
        }
        self._totals = dict.fromkeys(self._contract.modules, 0.0)
        self._sites: set[str] = set()
        self._products: dict[str, LowRankSum] = {}
        if self._contract.has_pairs:
            self._products = {m: LowRankSum(*self._contract.shape(m)) for m in self._totals}
        self._residual = self._read_residual(residual or {})

    def add(self, site: str, tensors: Mapping[str, Tensor], weight: float) -> None:
        """Take one site's update.

        Args:
            site: Who sent it; each site once.
            tensors: Its shared factors by wire name, CPU fp32.
            weight: Training examples, > 0; counts as 1 where the settings say uniform.

        Raises:
            ParameterError: A second update, a weight that is not > 0, or names, shapes, ranks, type
                or values that are not as agreed; nothing was added.
        """
        if site in self._sites:
            raise LoraError(f"{site}: a second update in one round")
        if not (weight > 0 and math.isfinite(weight)):
            raise LoraError(f"{site}: expected a weight > 0, got {weight}")
        self._contract.check(site, tensors)
        pairs = pair_factors(tensors, site) if self._contract.has_pairs else {}
        weights = self._weights(pairs, weight)
        self._sites.add(site)
        for module, (a, b) in pairs.items():
            self._products[module].add(b, a, weights[module])
        if self._mode.has_mixed_ranks:
            ranks = {m: pair.rank for m, pair in self._contract.reference.items()}
            tensors = name_factors({m: pad_factors(pairs[m], ranks[m]) for m in pairs})
        for name, total in self._sums.items():
            total.add_(tensors[name].double(), alpha=weights[parse_factor_name(name)[0]])
        for module, value in weights.items():
            self._totals[module] += value

    def finish(self) -> Aggregated:
        """The next global model.

        Raises:
            LoraError: No update was taken.
        """
        if not self._sites:
            raise LoraError("no update to aggregate; keep the global model")
        means = {
            name: total / self._totals[parse_factor_name(name)[0]]
            for name, total in self._sums.items()
        }
        if not self._contract.has_pairs:
            tensors = {name: mean.float() for name, mean in means.items()}
            exactness = exact(self._contract.modules) if self._mode.is_measured else None
            return Aggregated(tensors, {}, len(self._sites), exactness)
        targets = {module: self._target(module) for module in self._totals}
        pairs = pair_factors(means, "the mean")
        factors = {m: self._next_factors(m, pairs[m], targets[m]) for m in targets}
        return self._with_residual(targets, factors)

    def _weights(self, pairs: Mapping[str, Factors], weight: float) -> dict[str, float]:
        """The site's weight by module."""
        if self._mode.name == "hetlora" and self.settings.hetlora_weight_by == "norm":
            return {m: max(product_norm(pair), NORM_FLOOR) for m, pair in pairs.items()}
        by_size = self.settings.weight_by == "num_examples"
        return dict.fromkeys(self._totals, float(weight) if by_size else 1.0)

    def _target(self, module: str) -> LowRankSum:
        """P + R, what the sites' weights were on average."""
        target = LowRankSum(*self._contract.shape(module))
        target.add_sum(self._products[module], 1 / self._totals[module])
        if module in self._residual:
            target.add_sum(self._residual[module])
        return target

    def _next_factors(self, module: str, mean: Factors, target: LowRankSum) -> Factors:
        """The factors that sites train on, before rounding to fp32."""
        sent = self._contract.reference[module]
        if self._mode.name == "stack":
            return sent
        if self._mode.name != "svd":
            return mean
        b, a = split_balanced(target.singular_values(), sent.rank, sent.a)
        return Factors(a, b)

    def _with_residual(
        self, targets: Mapping[str, LowRankSum], factors: Mapping[str, Factors]
    ) -> Aggregated:
        """Round to fp32, put what the rounded factors miss into the residual, measure the rest."""
        tensors = {name: value.float() for name, value in name_factors(factors).items()}
        residual: dict[str, Tensor] = {}
        lost: dict[str, float] = {}
        errors: dict[str, LowRankSum] = {}
        for module, (a, b) in pair_factors(tensors, "the mean").items():
            missing = errors[module] = LowRankSum(*targets[module].shape)
            missing.add_sum(targets[module])
            missing.add(b, a, -1.0)
            if not self._mode.has_residual:
                continue
            most = self.settings.max_residual_rank
            sides, cut = compress(missing, targets[module].norm(), most)
            if sides:
                named = name_residual(module, sides)
                residual |= named
                missing.add_sum(
                    as_sum(read_residual(named, "the mean")[module], *missing.shape), -1.0
                )
            if cut:
                lost[module] = cut
        exactness = relative_error(targets, errors)
        return Aggregated(tensors, residual, len(self._sites), exactness, lost)

    def _read_residual(self, residual: Mapping[str, Tensor]) -> dict[str, LowRankSum]:
        if residual and not self._mode.has_residual:
            raise LoraError(f"mode {self._mode.name} has no residual, got {sorted(residual)}")
        parts = read_residual(residual, "the global model")
        unknown = sorted(parts.keys() - self._totals.keys())
        if unknown:
            raise LoraError(f"residual of modules without factors: {unknown}")
        return {m: as_sum(part, *self._contract.shape(m)) for m, part in parts.items()}


def aggregate(
    settings: LoraAggregation,
    reference: Mapping[str, Tensor],
    updates: Mapping[str, Mapping[str, Tensor]],
    num_examples: Mapping[str, float],
    residual: Mapping[str, Tensor] | None = None,
) -> Aggregated:
    """Aggregate one round's updates, in the order of the sites' names; see `LoraSum`.

    Args:
        settings: Mode and weights.
        reference: The shared factors that were sent out, by wire name.
        updates: Each site's shared factors by wire name.
        num_examples: Each site's training examples, > 0.
        residual: The residual that was sent out, by wire name.

    Raises:
        ParameterError: As `LoraSum`, or the sites of `updates` and `num_examples` differ.
    """
    if updates.keys() != num_examples.keys():
        raise LoraError(
            f"updates of {sorted(updates)}, but examples of {sorted(num_examples)}; expected the "
            "same sites"
        )
    total = LoraSum(settings, reference, residual)
    for site in sorted(updates):
        total.add(site, updates[site], num_examples[site])
    return total.finish()
