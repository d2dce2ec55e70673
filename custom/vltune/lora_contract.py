"""What a site's LoRA update must look like, given the global factors that were sent out."""

from collections.abc import Mapping

from torch import Tensor

from vltune.lora_factors import Factors, LoraError, factor_name, pair_factors, parse_factor_name
from vltune.lora_modes import AggregationMode
from vltune.parameters import check_shared, spec_of


class LoraContract:
    """Names and shapes of the shared factors of one mode, and the check of an update against them.

    Args:
        mode: Says which factors are shared and whether a site's rank may be smaller.
        reference: The shared factors that were sent out, by wire name, CPU fp32.

    Raises:
        ParameterError: The reference is not the mode's set of factors, or not finite fp32; for
            stack, B is not zero.
    """

    def __init__(self, mode: AggregationMode, reference: Mapping[str, Tensor]) -> None:
        self.mode = mode
        self.spec = spec_of(reference)
        self.modules = sorted({parse_factor_name(name)[0] for name in self.spec})
        kinds = {parse_factor_name(name)[1] for name in self.spec}
        if kinds != mode.shared:
            raise LoraError(
                f"mode {mode.name} shares factors {' and '.join(sorted(mode.shared))}, the global "
                f"model has {' and '.join(sorted(kinds)) or 'none'}"
            )
        check_shared(self.spec, reference, "the global model")
        self.has_pairs = mode.shared == {"A", "B"}
        self.reference: dict[str, Factors] = {}
        if self.has_pairs:
            self.reference = pair_factors(reference, "the global model")
            moved = sorted(m for m, pair in self.reference.items() if bool(pair.b.any()))
            if mode.name == "stack" and moved:
                raise LoraError(
                    f"mode stack starts each round from B = 0, which is not so: {moved}"
                )

    def shape(self, module: str) -> tuple[int, int]:
        """D_out and D_in of a module; only where both factors are shared."""
        a, b = self.reference[module]
        return int(b.shape[0]), int(a.shape[1])

    def check(self, site: str, tensors: Mapping[str, Tensor]) -> None:
        """Refuse an update that is not as agreed.

        Raises:
            ParameterError: Names, shapes, type or values; all differences are listed.
        """
        spec = dict(self.spec)
        if self.mode.has_mixed_ranks and tensors.keys() == spec.keys():
            spec = self._at_rank_of(site, tensors)
        check_shared(spec, tensors, site)

    def _at_rank_of(self, site: str, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """The agreed shapes at the ranks that the site sent."""
        pairs = pair_factors(tensors, site)
        most = {module: pair.rank for module, pair in self.reference.items()}
        beyond = [f"{m} {pairs[m].rank} > {most[m]}" for m in pairs if pairs[m].rank > most[m]]
        if beyond:
            raise LoraError(
                f"{site}: ranks beyond the global one: {', '.join(beyond)}; lower the site's rank "
                "or raise the job's"
            )
        spec: dict[str, tuple[int, ...]] = {}
        for module, pair in pairs.items():
            rows, columns = self.shape(module)
            spec[factor_name(module, "A")] = (pair.rank, columns)
            spec[factor_name(module, "B")] = (rows, pair.rank)
        return spec
