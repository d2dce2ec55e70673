"""An optimiser's memory as named tensors, which a site keeps beside its personal tensors."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

PREFIX = "optimizer."
KEYS: dict[type[torch.optim.Optimizer], frozenset[str]] = {
    torch.optim.SGD: frozenset({"momentum_buffer"}),
    torch.optim.AdamW: frozenset({"step", "exp_avg", "exp_avg_sq"}),
}


class OptimizerStateError(ValueError):
    """Kept tensors are not the memory of this optimiser; the message names the first difference."""


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """Copy what the optimiser remembers of each parameter.

    Args:
        optimizer: With one group of parameters.
        names: Of the parameters, in the optimiser's order.

    Returns:
        `optimizer.<name>.<key>` -> CPU tensor, sorted; empty before the first step.
    """
    state = optimizer.state_dict()["state"]
    found = {
        f"{PREFIX}{names[index]}.{key}": value.detach().to("cpu", copy=True)
        for index, entries in state.items()
        for key, value in entries.items()
        if isinstance(value, Tensor)
    }
    return {name: found[name] for name in sorted(found)}


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Sequence[str], tensors: Mapping[str, Tensor]
) -> None:
    """Give an optimiser back what `optimizer_tensors` returned.

    Args:
        optimizer: New, of the same kind and parameters.
        names: As then.
        tensors: Names with `PREFIX`; empty leaves the optimiser new.

    Raises:
        OptimizerStateError: A name belongs to no parameter, or a shape is another.
    """
    shapes = [tuple(p.shape) for group in optimizer.param_groups for p in group["params"]]
    index_of = {name: index for index, name in enumerate(names)}
    known = KEYS[type(optimizer)]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        parameter, _, key = name.removeprefix(PREFIX).rpartition(".")
        index = index_of.get(parameter)
        if not name.startswith(PREFIX) or index is None:
            raise OptimizerStateError(
                f"{name}: no parameter of this name is trained here. The run was made with other "
                "settings; start a new one."
            )
        if key not in known:
            raise OptimizerStateError(
                f"{name}: {type(optimizer).__name__} remembers {', '.join(sorted(known))}. The run "
                "was made with another optimizer; take that one, or start a new run."
            )
        if value.ndim and tuple(value.shape) != shapes[index]:
            raise OptimizerStateError(
                f"{name}: has shape {tuple(value.shape)}, the parameter has {shapes[index]}. The "
                "run was made with other settings; start a new one."
            )
        state.setdefault(index, {})[key] = value.clone()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
