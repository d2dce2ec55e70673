import pytest
import torch
from torch import nn

from vltune.parameters import (
    Ownership,
    ParameterError,
    apply_shared,
    check_shared,
    describe_difference,
    ownership_of,
    personal_state,
    shared_state,
    spec_of,
    update_norm,
)


class TwoParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.ones(2, 3))
        self.lora_B = nn.Parameter(torch.full((5, 2), 2.0))
        self.base = nn.Parameter(torch.zeros(7), requires_grad=False)


SHARED = {"lora_B"}


def test_every_tensor_has_one_owner() -> None:
    assert ownership_of(TwoParts(), SHARED) == {
        "lora_A": Ownership.PERSONAL,
        "lora_B": Ownership.SHARED,
        "base": Ownership.FROZEN,
    }


@pytest.mark.parametrize(
    ("keys", "word"), [({"lora_C"}, "not in the model"), ({"base"}, "never trained")]
)
def test_wrong_shared_keys_are_refused(keys: set[str], word: str) -> None:
    with pytest.raises(ParameterError, match=word):
        ownership_of(TwoParts(), keys)


def test_shared_state_holds_copies_of_shared_tensors_only() -> None:
    model = TwoParts()
    state = shared_state(model, SHARED)
    with torch.no_grad():
        model.lora_B.zero_()
    assert list(state) == ["lora_B"]
    assert torch.equal(state["lora_B"], torch.full((5, 2), 2.0))
    assert list(personal_state(model, SHARED)) == ["lora_A"]


def test_apply_writes_shared_and_nothing_else() -> None:
    model = TwoParts()
    apply_shared(model, {"lora_B": torch.full((5, 2), 3.0)}, SHARED)
    assert torch.equal(model.lora_B, torch.full((5, 2), 3.0))
    assert torch.equal(model.lora_A, torch.ones(2, 3))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, ["missing: ['lora_B']"]),
        ({"lora_B": torch.zeros(5, 2), "lora_A": torch.zeros(2, 3)}, ["unknown: ['lora_A']"]),
        ({"lora_B": torch.zeros(2, 5)}, ["expected shape (5, 2), got (2, 5)"]),
        ({"lora_B": torch.zeros(5, 2, dtype=torch.float16)}, ["must be float32"]),
        ({"lora_B": torch.full((5, 2), float("nan"))}, ["NaN or infinity"]),
        ({"lora_B": torch.full((5, 2), float("inf"))}, ["NaN or infinity"]),
    ],
)
def test_strict_check_lists_the_difference(
    tensors: dict[str, torch.Tensor], words: list[str]
) -> None:
    with pytest.raises(ParameterError) as error:
        check_shared({"lora_B": (5, 2)}, tensors, "hospital-a")
    for word in ["hospital-a", *words]:
        assert word in str(error.value)
    model = TwoParts()
    with pytest.raises(ParameterError):
        apply_shared(model, tensors, SHARED)
    assert torch.equal(model.lora_B, torch.full((5, 2), 2.0))


def test_equal_specs_have_no_difference() -> None:
    spec = spec_of(shared_state(TwoParts(), SHARED))
    assert spec == {"lora_B": (5, 2)}
    assert describe_difference(spec, spec) == ""


def test_update_norm_by_hand() -> None:
    """Differences 3 and 4 in two tensors: sqrt(9 + 16) = 5."""
    old = {"a": torch.zeros(2), "b": torch.zeros(3)}
    new = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([0.0, 4.0, 0.0])}
    assert update_norm(new, old) == 5.0
