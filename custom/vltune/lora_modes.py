"""The ways to aggregate LoRA: what each one sends, keeps and freezes, and whether it is linear.

A *linear* mode gives the server nothing to do but a weighted sum of what was sent, so homomorphic
encryption and secure aggregation leave its result as it is. The others need every site's factors in
the clear. docs/lora_aggregation.md compares them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from vltune.config import ConfigError
from vltune.lora_factors import Kind, LoraError, names_of_kinds, parse_factor_name
from vltune.parameters import Ownership

ModeName = Literal["fedavg", "ffa", "fedsa", "plora", "svd", "fedex", "stack", "hetlora"]
_BYTES_PER_VALUE = 4


@dataclass(frozen=True)
class AggregationMode:
    """One way to aggregate.

    Attributes:
        name: Value of `aggregation.mode`.
        source: Where it was published.
        shared: Factors that leave the site.
        personal: Factors that are trained and stay at the site.
        frozen: Factors that stay at their seeded start.
        needs_products: Why the server must see each site's factors; empty where it only sums.
        has_residual: The server also sends a residual, which sites hold frozen beside their base.
        keeps_basis: The factors that come back are in the coordinates of those that were sent, so
            that an optimiser's memory still fits them.
        has_mixed_ranks: Sites may send a smaller rank than the global model's.
    """

    name: ModeName
    source: str
    shared: frozenset[Kind]
    personal: frozenset[Kind] = frozenset()
    frozen: frozenset[Kind] = frozenset()
    needs_products: str = ""
    has_residual: bool = False
    has_mixed_ranks: bool = False
    keeps_basis: bool = True

    @property
    def is_measured(self) -> bool:
        """Whether the server can tell the exactness error: it has both factors of every site."""
        return not self.personal

    def ownership(self, names: Iterable[str]) -> dict[str, Ownership]:
        """Who may see each factor, by wire name."""
        return {name: self._owner(parse_factor_name(name)[1]) for name in sorted(names)}

    def _owner(self, kind: Kind) -> Ownership:
        if kind in self.shared:
            return Ownership.SHARED
        return Ownership.PERSONAL if kind in self.personal else Ownership.FROZEN

    def shared_names(self, names: Iterable[str]) -> tuple[str, ...]:
        """Wire names of the factors that a site sends, sorted."""
        return names_of_kinds(names, self.shared)

    def upload_bytes(self, spec: Mapping[str, tuple[int, ...]]) -> int:
        """Bytes of a site's fp32 upload, given the shapes of all factors."""
        total = 0
        for name in self.shared_names(spec):
            count = 1
            for size in spec[name]:
                count *= size
            total += count
        return total * _BYTES_PER_VALUE


_BOTH: frozenset[Kind] = frozenset({"A", "B"})
_A: frozenset[Kind] = frozenset({"A"})
_B: frozenset[Kind] = frozenset({"B"})

MODES: dict[ModeName, AggregationMode] = {
    mode.name: mode
    for mode in (
        AggregationMode("fedavg", "mean of A and mean of B", shared=_BOTH),
        AggregationMode("ffa", "FFA-LoRA, arXiv 2403.12313", shared=_B, frozen=_A),
        AggregationMode("fedsa", "FedSA-LoRA, arXiv 2410.01463", shared=_A, personal=_B),
        AggregationMode("plora", "FedVLM, arXiv 2507.17088", shared=_B, personal=_A),
        AggregationMode(
            "svd",
            "FlexLoRA, arXiv 2402.11505",
            shared=_BOTH,
            needs_products="the server takes singular values of the mean of the products B A",
            has_mixed_ranks=True,
            keeps_basis=False,
        ),
        AggregationMode(
            "fedex",
            "FedEx-LoRA, arXiv 2410.09432",
            shared=_BOTH,
            needs_products="the server forms the products B A of each site for the residual",
            has_residual=True,
        ),
        AggregationMode(
            "stack",
            "FLoRA, arXiv 2409.05976",
            shared=_BOTH,
            needs_products="the server stacks the factors of each site",
            has_residual=True,
            has_mixed_ranks=True,
            keeps_basis=False,
        ),
        AggregationMode(
            "hetlora",
            "HetLoRA, arXiv 2401.06432",
            shared=_BOTH,
            needs_products="a site's weight is the norm of its product B A",
            has_mixed_ranks=True,
        ),
    )
}


@dataclass(frozen=True)
class LoraAggregation:
    """The job's choice.

    Attributes:
        mode: One of `MODES`.
        weight_by: Weights of every mean: the site's training examples, or 1.
        hetlora_weight_by: `norm` weighs a module of a site by the norm of its product, as
            published; `weight_by` takes the weights above and makes hetlora linear.
        max_residual_rank: fedex and stack: ranks of the residual beyond this are cut off, so that
            it is no longer exact; None keeps all.
    """

    mode: ModeName = "fedavg"
    weight_by: Literal["num_examples", "uniform"] = "num_examples"
    hetlora_weight_by: Literal["norm", "weight_by"] = "norm"
    max_residual_rank: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(
                f"aggregation: unknown mode {self.mode!r}; known modes: {', '.join(MODES)}"
            )
        for name, value, known in (
            ("weight_by", self.weight_by, ("num_examples", "uniform")),
            ("hetlora_weight_by", self.hetlora_weight_by, ("norm", "weight_by")),
        ):
            if value not in known:
                raise ConfigError(
                    f"aggregation: {name} must be {' or '.join(known)}, got {value!r}"
                )
        if self.max_residual_rank is not None and self.max_residual_rank < 1:
            raise ConfigError(
                f"aggregation: max_residual_rank must be >= 1 or null, got {self.max_residual_rank}"
            )

    @property
    def description(self) -> AggregationMode:
        """What the mode sends, keeps and freezes."""
        return MODES[self.mode]

    @property
    def why_not_linear(self) -> str:
        """Why the result is no weighted sum of what is sent; empty where it is one."""
        if self.mode == "hetlora" and self.hetlora_weight_by != "norm":
            return ""
        return self.description.needs_products

    @property
    def is_linear(self) -> bool:
        """Whether homomorphic encryption and secure aggregation leave the result as it is."""
        return not self.why_not_linear

    def require_linear(self, filter_name: str) -> None:
        """Refuse this mode beside a filter that lets the server see nothing but sums.

        Raises:
            LoraError: The mode is not linear; the message says why and what to choose.
        """
        if self.why_not_linear:
            raise LoraError(
                f"aggregation mode {self.mode!r} cannot work under {filter_name}: "
                f"{self.why_not_linear}. Choose fedavg, ffa, fedsa or plora, or take the filter "
                "away."
            )
