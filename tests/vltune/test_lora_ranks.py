import math

import pytest
import torch

from vltune.lora_factors import Factors, LoraError, factor_name, name_factors
from vltune.lora_ranks import pad_factors, product_norm, truncate_factors

D_IN, D_OUT, r = 5, 7, 3


def pair(seed: int = 0) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    return Factors(
        torch.randn(r, D_IN, generator=generator), torch.randn(D_OUT, r, generator=generator)
    )


def test_padding_keeps_the_product() -> None:
    padded = pad_factors(pair(), 5)
    assert padded.a.shape == (5, D_IN)
    assert padded.b.shape == (D_OUT, 5)
    assert torch.equal(padded.b @ padded.a, pair().b @ pair().a)
    with pytest.raises(LoraError, match="rank 3 cannot be padded to rank 2"):
        pad_factors(pair(), 2)


def test_truncation_by_hand() -> None:
    """B A = diag(3, 4): cut to rank 1, 4 of 5 is lost."""
    tensors = name_factors({"m": Factors(torch.eye(2), torch.diag(torch.tensor([3.0, 4.0])))})
    cut = truncate_factors(tensors, 1)
    assert cut.tensors[factor_name("m", "A")].tolist() == [[1.0, 0.0]]
    assert cut.tensors[factor_name("m", "B")].tolist() == [[3.0], [0.0]]
    assert cut.lost == {"m": pytest.approx(4 / 5)}


def test_truncation_of_padding_is_the_start() -> None:
    padded = name_factors({"m": pad_factors(pair(), 5)})
    cut = truncate_factors(padded, r)
    assert torch.equal(cut.tensors[factor_name("m", "A")], pair().a)
    assert cut.lost == {"m": 0.0}


def test_a_module_of_smaller_rank_stays_and_copies_are_no_aliases() -> None:
    tensors = name_factors({"m": pair()})
    cut = truncate_factors(tensors, 9)
    assert all(torch.equal(cut.tensors[name], tensors[name]) for name in tensors)
    cut.tensors[factor_name("m", "A")].zero_()
    assert tensors[factor_name("m", "A")].any()


def test_nothing_lost_of_nothing() -> None:
    zero = name_factors({"m": Factors(torch.ones(r, D_IN), torch.zeros(D_OUT, r))})
    assert truncate_factors(zero, 1).lost == {"m": 0.0}


def test_norm() -> None:
    a, b = pair()
    assert product_norm(Factors(a, b)) == pytest.approx(float((b @ a).norm()), rel=1e-6)
    wide = Factors(torch.ones(1, 100), torch.ones(100, 1))
    assert product_norm(wide) == pytest.approx(math.sqrt(100 * 100))


def test_bad_rank() -> None:
    with pytest.raises(LoraError, match="rank >= 1 to truncate to, got 0"):
        truncate_factors(name_factors({"m": pair()}), 0)
