from typing import Any

import pytest
import torch

from vltune.optimizer_state import (
    OptimizerStateError,
    load_optimizer_tensors,
    optimizer_tensors,
)

NAMES = ["a", "b"]


def make(kind: str) -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(4))]
    if kind == "sgd":
        return parameters, torch.optim.SGD(parameters, 0.1, momentum=0.9)
    return parameters, torch.optim.AdamW(parameters, 0.1)


def step(parameters: Any, optimizer: torch.optim.Optimizer, times: int) -> None:
    for number in range(times):
        optimizer.zero_grad()
        sum((p * (number + 1)).square().sum() for p in parameters).backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_an_optimiser_goes_on_as_if_it_had_not_been_interrupted(kind: str) -> None:
    whole, optimizer = make(kind)
    step(whole, optimizer, 3)
    kept = optimizer_tensors(optimizer, NAMES)
    values = [p.detach().clone() for p in whole]
    step(whole, optimizer, 2)
    again, fresh = make(kind)
    with torch.no_grad():
        for parameter, value in zip(again, values, strict=True):
            parameter.copy_(value)
    load_optimizer_tensors(fresh, NAMES, kept)
    step(again, fresh, 2)
    for one, other in zip(whole, again, strict=True):
        assert torch.equal(one, other)


def test_without_memory_the_next_steps_differ() -> None:
    whole, optimizer = make("adamw")
    step(whole, optimizer, 3)
    assert optimizer_tensors(optimizer, NAMES)
    assert optimizer_tensors(make("adamw")[1], NAMES) == {}


def test_the_copies_do_not_alias_the_optimiser() -> None:
    parameters, optimizer = make("adamw")
    step(parameters, optimizer, 1)
    kept = optimizer_tensors(optimizer, NAMES)
    before = kept["optimizer.a.exp_avg"].clone()
    step(parameters, optimizer, 1)
    assert torch.equal(kept["optimizer.a.exp_avg"], before)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("optimizer.c.exp_avg", (3, 2)),
        ("a", (3, 2)),
        ("optimizer.a.exp_avg", (2,)),
        ("optimizer.a.momentum_buffer", (3, 2)),
    ],
)
def test_foreign_memory_is_refused_by_name(name: str, shape: tuple[int, ...]) -> None:
    _, optimizer = make("adamw")
    with pytest.raises(OptimizerStateError, match=name):
        load_optimizer_tensors(optimizer, NAMES, {name: torch.zeros(shape)})
