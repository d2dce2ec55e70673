"""How far two tasks pull the same weights in different directions.

The *update* of a task over a round is the sum of its gradients over the round's steps: what plain
gradient descent would have moved for this task alone, to first order. The meter is the cosine of
two tasks' updates, by layer and over all: 1 where they agree, 0 where they have nothing to do with
each other, below 0 where one undoes the other (Yu et al. 2020, arXiv 2001.06782, section 2).
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

_LAYER = re.compile(r"(?P<layer>.*?\.(?:layers|blocks|layer|h)\.\d+)\.")
OTHER = "other"
"""Label of what is in no numbered layer."""
OVERALL = ""
"""Label of all parameters together."""


def layer_of(name: str) -> str:
    """The part of a parameter's name up to its layer's number, or `OTHER`."""
    found = _LAYER.match(name)
    return found["layer"] if found else OTHER


class ConflictMeter:
    """Adds up the gradients of each task while the tasks are trained together.

    Within a step call `took` after each task's backward pass, when the parameters hold the sum of
    this step's gradients so far; and `end_step` before the gradients are set back.

    Args:
        parameters: Trained parameters by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        self._before: dict[str, Tensor] = {}
        self._sums: dict[str, dict[str, Tensor]] = {}

    @property
    def layers(self) -> list[str]:
        """Labels of all layers, in the model's order."""
        return list(dict.fromkeys(map(layer_of, self._parameters)))

    def took(self, task: str) -> None:
        """Count what the gradients have changed by since the step's last call for this task."""
        sums = self._sums.setdefault(task, {})
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                continue
            now = parameter.grad.detach().clone()
            before = self._before.get(name)
            change = now if before is None else now - before
            sums[name] = sums[name] + change if name in sums else change.clone()
            self._before[name] = now

    def end_step(self) -> None:
        """The gradients will be set back."""
        self._before = {}

    def reset(self) -> None:
        """Begin a new round."""
        self._before, self._sums = {}, {}

    def cosines(self, one: str, other: str) -> dict[str, float]:
        """Cosine of two tasks' updates by layer, in the model's order, and `OVERALL`.

        Empty where a task was never trained; a layer that a task did not move is left out.
        """
        first, second = self._sums.get(one), self._sums.get(other)
        if not first or not second:
            return {}
        groups: dict[str, list[str]] = {OVERALL: list(self._parameters)}
        for name in self._parameters:
            groups.setdefault(layer_of(name), []).append(name)
        found = {}
        for label, names in groups.items():
            cosine = _cosine(*(_joined(sums, names) for sums in (first, second)))
            if cosine is not None:
                found[label] = cosine
        return found


def _joined(sums: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    return {name: sums[name].double().flatten() for name in names if name in sums}


def _cosine(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float | None:
    both = [name for name in one if name in other]
    product = sum((torch.dot(one[name], other[name]).item() for name in both), 0.0)
    norms = [
        sum((value.square().sum().item() for value in part.values()), 0.0) for part in (one, other)
    ]
    if not all(norms):
        return None
    return float(product / (norms[0] * norms[1]) ** 0.5)
