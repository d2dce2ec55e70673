"""Sites of different ranks: zero padding up, truncation down, and what each costs.

Padding loses nothing: the product B A stays. Truncation to the first r directions drops the rest
of the product. After svd the directions are sorted by weight, so that it drops as little as rank r
can; after hetlora they are in no order, and what only large sites train a small site never sees.
Ranks may differ only at one scale alpha / r (`LoraSettings.at_rank`).
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import pad

from vltune.lora_factors import Factors, LoraError, name_factors, pair_factors
from vltune.low_rank import LowRankSum


class Truncated(NamedTuple):
    """Factors cut to a rank, by wire name, and the share of the product that was lost.

    Attributes:
        tensors: Copies, by wire name.
        lost: Norm of the dropped part / norm of the whole product, by module.
    """

    tensors: dict[str, Tensor]
    lost: dict[str, float]


def pad_factors(factors: Factors, rank: int) -> Factors:
    """Add zero rows to A and zero columns to B; the product stays.

    Raises:
        LoraError: The factors have a larger rank already.
    """
    missing = rank - factors.rank
    if missing < 0:
        raise LoraError(f"factors of rank {factors.rank} cannot be padded to rank {rank}")
    return Factors(pad(factors.a, (0, 0, 0, missing)), pad(factors.b, (0, missing)))


def cut_like(tensors: Mapping[str, Tensor], update: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The global factors as the sender of `update` was given them: views cut to its ranks.

    Both by wire name and already checked against each other; factors of equal rank stay whole.
    """
    return {n: value[tuple(map(slice, update[n].shape))] for n, value in tensors.items()}


def truncate_factors(tensors: Mapping[str, Tensor], rank: int) -> Truncated:
    """Cut the global factors to a site's rank: the first rows of A, the first columns of B.

    Args:
        tensors: Both factors of each module, by wire name.
        rank: The site's r, >= 1; a module of smaller rank stays.

    Raises:
        LoraError: rank < 1, or the factors are no pairs.
    """
    if rank < 1:
        raise LoraError(f"expected a rank >= 1 to truncate to, got {rank}")
    kept, lost = {}, {}
    for module, (a, b) in pair_factors(tensors, "the global model").items():
        kept[module] = Factors(a[:rank].clone(), b[:, :rank].clone())
        whole = product_norm(Factors(a, b))
        dropped = product_norm(Factors(a[rank:], b[:, rank:]))
        lost[module] = dropped / whole if whole else 0.0
    return Truncated(name_factors(kept), lost)


def product_norm(factors: Factors) -> float:
    """Frobenius norm of B A, without forming it unless it is the smaller one."""
    total = LowRankSum(factors.b.shape[0], factors.a.shape[1])
    total.add(factors.b, factors.a)
    return total.norm()
