"""Directions of one pair of factors that belong to one task."""

import pytest
import torch
from torch import nn

from vltune.config import ConfigError
from vltune.lora import add_lora, read_factors
from vltune.lora_factors import LoraSettings
from vltune.lora_modes import MODES
from vltune.task_routing import TaskRouting, check_mode, directions_of

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = {"model_type": "custom"}
        self.q = nn.Linear(4, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.q(x)
        return out


def test_directions_follow_each_other_and_add_up() -> None:
    rows = directions_of({"understanding": 3, "generation": 5}, 8)
    assert rows == {"understanding": slice(0, 3), "generation": slice(3, 8)}
    for wrong in ({"understanding": 3, "generation": 4}, {"understanding": 8, "generation": 0}):
        with pytest.raises(ConfigError, match=r"add up to lora\.rank, 8"):
            directions_of(wrong, 8)


@pytest.mark.parametrize("name", ["svd", "fedex", "stack", "hetlora"])
def test_modes_that_mix_directions_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"aggregation mode {name} mixes or cuts"):
        check_mode(MODES[name])  # type: ignore[index]


def test_a_task_uses_its_directions_and_trains_no_others() -> None:
    torch.manual_seed(0)
    base = Net()
    weight = base.q.weight.detach().clone()
    model = add_lora(base, LoraSettings(3, 6.0, "q"), 1, allowed="q")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.normal_()
    rows = directions_of({"understanding": 1, "generation": 2}, 3)
    routing = TaskRouting(model, rows)
    a, b = (read_factors(model, (kind,)).popitem()[1] for kind in ("A", "B"))
    x = torch.randn(5, 4)
    for task, part in rows.items():
        with routing.only(task):
            expected = x @ weight.T + 2 * x @ a[part].T @ b[:, part].T
            torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(model(x), x @ weight.T + 2 * x @ a.T @ b.T)
    with routing.only("generation"):
        model(x).square().sum().backward()
    for name, value in model.named_parameters():
        if value.grad is not None:
            ours = value.grad if "lora_A" in name else value.grad.T
            assert not ours[rows["understanding"]].any()
            assert ours[rows["generation"]].any()
