"""Task-routed LoRA: each task has directions of its own within one pair of factors.

The first r_u rows of every A (and columns of B) belong to understanding, the other r_g to
generation; while a task runs the other's are masked::

    W_task = W0 + (alpha / r) B diag(m_task) A,    m_task in {0, 1}^r

Nothing changes on the wire. A site without a task sends that task's directions back as it got
them. Modes that mix directions (svd, fedex, stack) cannot keep tasks apart.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from vltune.config import ConfigError
from vltune.lora import ADAPTER
from vltune.lora_modes import AggregationMode


def directions_of(ranks: Mapping[str, int], rank: int) -> dict[str, slice]:
    """Rows of A by task, in the order given.

    Args:
        ranks: Task -> its number of directions, >= 1.
        rank: All of them, r.

    Raises:
        ConfigError: A number is below 1, or they do not add up to r.
    """
    if any(count < 1 for count in ranks.values()) or sum(ranks.values()) != rank:
        raise ConfigError(
            f"routing: {dict(ranks)} must be numbers >= 1 that add up to lora.rank, {rank}"
        )
    rows, start = {}, 0
    for task, count in ranks.items():
        rows[task] = slice(start, start + count)
        start += count
    return rows


def check_mode(mode: AggregationMode) -> None:
    """Refuse a mode whose result has other directions than its sites'.

    Raises:
        ConfigError: It mixes them.
    """
    if not mode.keeps_basis or mode.has_mixed_ranks or mode.has_residual:
        raise ConfigError(
            f"routing needs directions that stay where they are, but aggregation mode {mode.name} "
            "mixes or cuts them. Take fedavg, ffa, fedsa or plora, or remove routing."
        )


class TaskRouting:
    """Masks on the LoRA of one model.

    Args:
        model: From `lora.add_lora`.
        rows: Task -> its directions, from `directions_of`.
    """

    def __init__(self, model: PeftModel, rows: Mapping[str, slice]) -> None:
        self.rows = dict(rows)
        self._mask: Tensor | None = None
        self._held: list[tuple[Tensor, Tensor]] = []
        self._model = model
        self._masks: dict[str, Tensor] = {}
        rank = max(part.stop for part in rows.values())
        for task, part in rows.items():
            mask = torch.zeros(rank)
            mask[part] = 1.0
            self._masks[task] = mask
        for name, module in model.named_modules():
            if name.endswith(f".lora_A.{ADAPTER}"):
                module.register_forward_hook(self._masked)

    @contextmanager
    def only(self, task: str) -> Iterator[None]:
        """Run one task; without it all directions work."""
        before, self._mask = self._mask, self._masks[task]
        try:
            yield
        finally:
            self._mask = before

    def hold(self, tasks: Sequence[str]) -> None:
        """Remember the directions of tasks without data, until `release`.

        Their gradient is zero, but an optimiser's weight decay would move them.
        """
        self._held = [
            (view, view.detach().clone())
            for name, value in self._model.named_parameters()
            if "lora_" in name
            for view in (self._directions(name, value, task) for task in tasks)
        ]

    @torch.no_grad()
    def release(self) -> None:
        """Write what was held back."""
        for view, before in self._held:
            view.copy_(before)
        self._held = []

    def _directions(self, name: str, value: Tensor, task: str) -> Tensor:
        rows = self.rows[task]
        return value.data[rows] if ".lora_A." in name else value.data[:, rows]

    def _masked(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output if self._mask is None else output * self._mask.to(output)
