import math

import pytest
import torch

from vltune.lora_exactness import exactness_error
from vltune.lora_factors import Factors, LoraError


def one(a: float, b: float) -> dict[str, Factors]:
    return {"m": Factors(torch.tensor([[a]]), torch.tensor([[b]]))}


def test_by_hand() -> None:
    """Products 2 and 12, weights 3 and 1: mean 4.5. Mean factors 1.5 * 2.5 = 3.75: 0.75 / 4.5."""
    error = exactness_error([one(1, 2), one(3, 4)], [3, 1], one(1.5, 2.5))
    assert error.overall == pytest.approx(0.75 / 4.5, rel=1e-12)
    assert error.per_module == {"m": error.overall}


def test_overall_is_of_all_modules_together() -> None:
    """Means 3 and 4, errors 3 and 0: 1 and 0 by module, 3 / 5 overall."""
    site = {"x": one(1, 3)["m"], "y": one(1, 4)["m"]}
    error = exactness_error([site], [1], {"x": one(1, 0)["m"], "y": one(2, 2)["m"]})
    assert error.per_module == {"x": 1.0, "y": 0.0}
    assert error.overall == pytest.approx(0.6)


def test_equals_the_dense_calculation() -> None:
    generator = torch.Generator().manual_seed(0)
    sites = [
        {
            "m": Factors(
                torch.randn(r, 41, generator=generator), torch.randn(43, r, generator=generator)
            )
        }
        for r in (2, 3, 5)
    ]
    weights = [1.0, 2.0, 4.0]
    result = sites[1]
    mean = (
        sum(w * s["m"].b.double() @ s["m"].a.double() for w, s in zip(weights, sites, strict=True))
        / 7
    )
    difference = mean - result["m"].b.double() @ result["m"].a.double()
    expected = float(difference.norm() / mean.norm())
    assert exactness_error(sites, weights, result).overall == pytest.approx(expected, rel=1e-12)


def test_a_zero_mean() -> None:
    assert exactness_error([one(1, 0)], [1], one(5, 0)).overall == 0.0
    assert exactness_error([one(1, 0)], [1], one(5, 1)).overall == math.inf


def test_bad_input() -> None:
    with pytest.raises(LoraError, match="expected a weight for each update, got 1, 2"):
        exactness_error([one(1, 1)], [1, 2], one(1, 1))
    with pytest.raises(LoraError, match="expected a weight for each update, got 0, 0"):
        exactness_error([], [], one(1, 1))
    with pytest.raises(LoraError, match="expected weights > 0"):
        exactness_error([one(1, 1)], [0], one(1, 1))
    with pytest.raises(LoraError, match=r"update 0 and the result differ in modules: \['m', 'n'\]"):
        exactness_error([one(1, 1)], [1], {"n": one(1, 1)["m"]})
