"""Where a pre-training run stands, in one file: weights, optimiser, recipe and schedule."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vltune.config import ConfigError
from vltune.files import atomic_path
from vltune_lab.pretrain.recipe import EXTENDABLE


@dataclass
class RunState:
    """All that a checkpoint holds.

    Attributes:
        modules: What is trained, by the name that it has in the checkpoint.
        recipe: The run's configuration as a mapping; `steps` is read.
        step: Optimiser steps done.
        seconds: Spent in them.
        schedule: (first step, `steps` of the cosine from there on); one entry in a run of one go.
    """

    modules: Mapping[str, nn.Module]
    optimizer: torch.optim.Optimizer
    recipe: dict[str, Any]
    step: int = 0
    seconds: float = 0.0
    schedule: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.schedule = self.schedule or [[0, self.recipe["steps"]]]

    def save(self, path: Path) -> None:
        """Write atomically."""
        content = {name: module.state_dict() for name, module in self.modules.items()}
        content |= {
            "optimizer": self.optimizer.state_dict(),
            "recipe": self.recipe,
            "schedule": self.schedule,
            "step": self.step,
            "seconds": self.seconds,
        }
        with atomic_path(path) as temporary:
            torch.save(content, temporary)

    def load(self, path: Path) -> None:
        """Continue from `path`.

        Raises:
            ConfigError: It was begun under another recipe.
        """
        state = torch.load(path, map_location="cpu", weights_only=True)
        begun = state.get("recipe", {})
        changed = sorted(
            key
            for key in self.recipe
            if key not in EXTENDABLE and begun.get(key) != self.recipe[key]
        )
        if changed:
            key = changed[0]
            raise ConfigError(
                f"{path}: was begun with another recipe: {', '.join(changed)} differ ({key} was "
                f"{begun.get(key)}, is {self.recipe[key]}). Give the same values, or another --out."
            )
        self.schedule = state["schedule"]
        if self.schedule[-1][1] != self.recipe["steps"]:
            self.schedule.append([state["step"], self.recipe["steps"]])
        for name, module in self.modules.items():
            module.load_state_dict(state[name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]


def decayed_groups(modules: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups: matrices decay, biases, norms and scales do not."""
    return [
        {"params": [p for p in modules.parameters() if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in modules.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
