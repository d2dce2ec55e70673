import pytest
import torch

from vltune.config import ConfigError, from_mapping
from vltune.lora_factors import (
    LoraError,
    LoraSettings,
    factor_name,
    name_factors,
    names_of_kinds,
    pair_factors,
    parse_factor_name,
    split_by_kind,
)

A1, B1 = "base_model.model.x.q.lora_A.weight", "base_model.model.x.q.lora_B.weight"
A2, B2 = "base_model.model.y.lora_A.weight", "base_model.model.y.lora_B.weight"


def tensors() -> dict[str, torch.Tensor]:
    return {
        B2: torch.ones(7, 3),
        A1: torch.ones(2, 5),
        B1: torch.ones(11, 2),
        A2: torch.ones(3, 5),
    }


def test_names() -> None:
    assert factor_name("x.q", "A") == A1
    assert parse_factor_name(B1) == ("x.q", "B")
    assert names_of_kinds([B2, A1, B1], ("B",)) == (B1, B2)
    a, b = split_by_kind({A1: torch.ones(2, 5), B2: torch.ones(7, 3)})
    assert list(a) == ["x.q"]
    assert list(b) == ["y"]


def test_pairs_and_back() -> None:
    pairs = pair_factors(tensors(), "site-1")
    assert list(pairs) == ["x.q", "y"]
    assert (pairs["x.q"].rank, pairs["y"].rank) == (2, 3)
    named = name_factors(pairs)
    assert list(named) == sorted(tensors())
    assert all(
        named[name] is not None and torch.equal(named[name], tensors()[name]) for name in named
    )


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.x.lora_A.default.weight",
        "x.lora_A.weight",
        "base_model.model.x.lora_C.weight",
        "base_model.model.x.lora_embedding_A",
        "base_model.model.x.lora_A.weight.more",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(LoraError, match="not the name of a LoRA factor"):
        parse_factor_name(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({B1: None}, "site-1: x.q has no factor B"),
        ({A2: None}, "y has no factor A"),
        ({A1: torch.ones(3, 5)}, r"x.q: expected A \(r, D_in\) and B \(D_out, r\)"),
        ({A1: torch.ones(5)}, "x.q: expected A"),
        ({A2: torch.ones(0, 5), B2: torch.ones(7, 0)}, "y: a factor is empty"),
    ],
)
def test_what_is_no_pair_is_refused(change: dict[str, torch.Tensor], message: str) -> None:
    changed = {k: v for k, v in {**tensors(), **change}.items() if v is not None}
    with pytest.raises(LoraError, match=message):
        pair_factors(changed, "site-1")


def test_settings() -> None:
    settings = from_mapping(LoraSettings, {"rank": 8, "alpha": 16, "target": ".*q"}, "job.yaml")
    assert settings.scale == 2.0
    assert settings.at_rank(3) == LoraSettings(3, 6.0, ".*q")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "rank must be >= 1, got 0"),
        ({"alpha": 0}, "alpha must be > 0"),
        ({"alpha": float("inf")}, "alpha must be > 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"target": ""}, "target is empty"),
        ({"target": "("}, "no regular expression"),
    ],
)
def test_bad_settings(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(LoraSettings, {"rank": 8, "alpha": 16, "target": ".*q", **change}, "job.yaml")
