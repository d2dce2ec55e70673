"""LoRA's two factors by module, under peft's wire names, and the settings they are made by.

W = W0 + (alpha / r) B A, A (r, D_in), B (D_out, r). On the wire a factor is named as
`peft.get_peft_model_state_dict` names it, without the adapter's name:
`base_model.model.<module>.lora_A.weight` and `.lora_B.weight`.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from torch import Tensor

from vltune.config import ConfigError
from vltune.parameters import ParameterError

WIRE_PREFIX = "base_model.model."
Kind = Literal["A", "B"]
_FACTOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<kind>[AB])\.weight")


class LoraError(ParameterError):
    """LoRA factors, or the modules they are for, are not what was agreed; all are named."""


class Factors(NamedTuple):
    """One module's factors: a (r, D_in), b (D_out, r)."""

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        """The number of rows of A, r."""
        return int(self.a.shape[0])


@dataclass(frozen=True)
class LoraSettings:
    r"""How LoRA is put on a model.

    Attributes:
        rank: r, >= 1.
        alpha: Scale times rank, > 0. Where ranks differ between sites, alpha / rank must not.
        target: Regular expression that must match the whole name of a module, as peft reads it.
        dropout: Of the input of A while training, in [0, 1).
    """

    rank: int
    alpha: float
    target: str
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"lora: rank must be >= 1, got {self.rank}")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise ConfigError(f"lora: alpha must be > 0 and finite, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora: dropout must be in [0, 1), got {self.dropout}")
        if not self.target:
            raise ConfigError("lora: target is empty; give a regular expression of module names")
        try:
            re.compile(self.target)
        except re.error as error:
            raise ConfigError(
                f"lora: target {self.target!r} is no regular expression: {error}"
            ) from error

    @property
    def scale(self) -> float:
        """Factor of B A in the weights, alpha / rank."""
        return self.alpha / self.rank

    def at_rank(self, rank: int) -> "LoraSettings":
        """The same scale at another rank: what a site of another size must use."""
        return replace(self, rank=rank, alpha=self.scale * rank)


def factor_name(module: str, kind: Kind) -> str:
    """The wire name of a module's factor."""
    return f"{WIRE_PREFIX}{module}.lora_{kind}.weight"


def parse_factor_name(name: str) -> tuple[str, Kind]:
    """Module and kind of a wire name.

    Raises:
        LoraError: It is not the name of a LoRA factor.
    """
    match = _FACTOR.fullmatch(name)
    if match is None:
        raise LoraError(
            f"{name!r} is not the name of a LoRA factor; expected "
            f"{WIRE_PREFIX}<module>.lora_A.weight or .lora_B.weight, without the adapter's name"
        )
    return match["module"], "A" if match["kind"] == "A" else "B"


def names_of_kinds(names: Iterable[str], kinds: Iterable[Kind]) -> tuple[str, ...]:
    """The wire names among `names` that are a factor of one of `kinds`, sorted."""
    wanted = frozenset(kinds)
    return tuple(sorted(name for name in names if parse_factor_name(name)[1] in wanted))


def split_by_kind(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Factors A and factors B by module, each sorted; a module may have only one of them."""
    parts: dict[Kind, dict[str, Tensor]] = {"A": {}, "B": {}}
    for name in sorted(tensors):
        module, kind = parse_factor_name(name)
        parts[kind][module] = tensors[name]
    return parts["A"], parts["B"]


def pair_factors(tensors: Mapping[str, Tensor], source: str) -> dict[str, Factors]:
    """Both factors by module, sorted.

    Args:
        tensors: By wire name.
        source: Who sent them, for the message.

    Raises:
        LoraError: A module lacks a factor, a factor is not a matrix, or the two ranks of a module
            differ; all such modules are named.
    """
    a, b = split_by_kind(tensors)
    wrong = [f"{module} has no factor B" for module in sorted(a.keys() - b.keys())]
    wrong += [f"{module} has no factor A" for module in sorted(b.keys() - a.keys())]
    for module in sorted(a.keys() & b.keys()):
        shapes = tuple(a[module].shape), tuple(b[module].shape)
        if len(shapes[0]) != 2 or len(shapes[1]) != 2 or shapes[0][0] != shapes[1][1]:
            wrong.append(f"{module}: expected A (r, D_in) and B (D_out, r), got {shapes}")
        elif not (a[module].numel() and b[module].numel()):
            wrong.append(f"{module}: a factor is empty, {shapes}")
    if wrong:
        raise LoraError(f"LoRA factors from {source}: {'; '.join(wrong)}")
    return {module: Factors(a[module], b[module]) for module in a}


def name_factors(factors: Mapping[str, Factors]) -> dict[str, Tensor]:
    """The inverse of `pair_factors`, sorted by wire name."""
    named = {}
    for module, (a, b) in factors.items():
        named[factor_name(module, "A")] = a
        named[factor_name(module, "B")] = b
    return {name: named[name] for name in sorted(named)}
