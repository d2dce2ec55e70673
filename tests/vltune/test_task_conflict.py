"""The meter's sums and cosines, by hand and against separate gradients."""

import pytest
import torch
from torch import nn

from vltune.task_conflict import OTHER, ConflictMeter, layer_of


def test_layers_are_named_up_to_their_number() -> None:
    assert layer_of("m.encoder.layers.0.fc1.lora_A.w") == "m.encoder.layers.0"
    assert layer_of("m.decoder.layers.10.fc1.lora_A.w") == "m.decoder.layers.10"
    assert layer_of("m.head.lora_B.w") == OTHER


def test_cosines_of_sums_by_hand() -> None:
    """Task u moves layer 0 by (1, 0) then (1, 0); g by (0, 1) then (2, 0): sums (2, 0), (2, 1).

    Cosine 4 / (2 sqrt 5). In layer 1 they are (3,) and (-1,): -1. Over all:
    (4 - 3) / (sqrt(4 + 9) sqrt(5 + 1)), had not a third parameter moved by (0, 2) for g alone:
    (4 - 3) / (sqrt(4 + 9) sqrt(5 + 1 + 4)).
    """
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    third = nn.Parameter(torch.zeros(2))
    meter = ConflictMeter({"x.layers.0.w": first, "x.layers.1.w": second, "head.w": third})
    assert meter.layers == ["x.layers.0", "x.layers.1", OTHER]
    steps = [(([1.0, 0.0], 3.0), ([0.0, 1.0], -0.5)), (([1.0, 0.0], 0.0), ([2.0, 0.0], -0.5))]
    for understanding, generation in steps:
        first.grad = second.grad = third.grad = None
        for task, (one, other) in (("u", understanding), ("g", generation)):
            loss = (first * torch.tensor(one)).sum() + (second * other).sum()
            (loss + third[1] if task == "g" else loss).backward()
            meter.took(task)
        meter.end_step()
    found = meter.cosines("u", "g")
    assert found["x.layers.0"] == pytest.approx(4 / (2 * 5**0.5))
    assert found["x.layers.1"] == pytest.approx(-1)
    assert found[""] == pytest.approx((4 - 3) / (13**0.5 * 10**0.5))
    assert meter.cosines("g", "u")[""] == pytest.approx(found[""])
    assert OTHER not in found
    meter.reset()
    assert meter.cosines("u", "g") == {}


def test_a_task_alone_and_a_layer_that_stands_still_say_nothing() -> None:
    weight, still = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    meter = ConflictMeter({"h.0.w": weight, "x.layers.1.w": still})
    for _ in range(2):
        (weight.sum() + 0 * still.sum()).backward()
        meter.took("u")
        meter.end_step()
        weight.grad = still.grad = None
    assert meter.cosines("u", "g") == {}
    (weight.sum() + 0 * still.sum()).backward()
    meter.took("g")
    assert set(meter.cosines("u", "g")) == {"", OTHER}
