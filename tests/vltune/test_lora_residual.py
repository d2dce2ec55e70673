import pytest
import torch

from vltune.lora_factors import LoraError
from vltune.lora_residual import as_sum, compress, name_residual, read_residual
from vltune.low_rank import LowRankSum

PREFIX = "base_model.model.m.residual"


def low_rank(rank: int, rows: int = 23, columns: int = 29) -> LowRankSum:
    generator = torch.Generator().manual_seed(rank)
    total = LowRankSum(rows, columns)
    total.add(
        torch.randn(rows, rank, generator=generator),
        torch.randn(rank, columns, generator=generator),
    )
    return total


@pytest.mark.parametrize(("rank", "num_tensors"), [(1, 2), (12, 2), (13, 1), (23, 1)])
@pytest.mark.parametrize("turned", [False, True])
def test_back_and_forth(rank: int, num_tensors: int, turned: bool) -> None:
    """Factored up to 12 * (23 + 29) < 23 * 29."""
    residual = low_rank(rank, 29, 23) if turned else low_rank(rank)
    sides, lost = compress(residual, residual.norm())
    assert lost == 0.0
    assert len(sides) == num_tensors
    part = read_residual(name_residual("m", sides), "the server")["m"]
    got = as_sum(part, *residual.shape).dense()
    assert float((got - residual.dense()).norm()) < 1e-6 * residual.norm()


def test_rounding_is_no_residual() -> None:
    residual = low_rank(2)
    assert compress(residual, 1e8 * residual.norm()) == ({}, 0.0)
    assert compress(LowRankSum(23, 29), 1.0) == ({}, 0.0)


def test_a_cap_loses_the_smallest_values() -> None:
    residual = low_rank(5)
    values = residual.singular_values().values
    sides, lost = compress(residual, residual.norm(), 3)
    assert sides["_A"].shape == (3, 29)
    assert lost == pytest.approx(float(values[3:].norm()))


def test_a_module_without_residual() -> None:
    assert as_sum(None, 5, 7).norm() == 0.0


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{PREFIX}_C.weight": torch.ones(2, 3)}, "is not the name of a residual"),
        ({f"{PREFIX}_A.weight": torch.ones(2, 3)}, r"m has \['_A'\]; expected _A and _B"),
        (
            {f"{PREFIX}.weight": torch.ones(2, 3), f"{PREFIX}_B.weight": torch.ones(2, 3)},
            r"m has \['', '_B'\]",
        ),
        (
            {f"{PREFIX}_A.weight": torch.ones(2, 3), f"{PREFIX}_B.weight": torch.ones(5, 3)},
            "the ranks of",
        ),
        ({f"{PREFIX}.weight": torch.ones(3)}, "must be a finite matrix"),
        ({f"{PREFIX}.weight": torch.full((2, 3), torch.nan)}, "must be a finite matrix"),
    ],
)
def test_damaged(tensors: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(LoraError, match=f"residual from the server: .*{message}"):
        read_residual(tensors, "the server")
