"""The privacy room: which tensors are shared, personal or frozen, and what an update may hold.

*Shared* tensors leave the site, *personal* tensors are trained and stay, *frozen* tensors are never
trained. A model names its shared keys; everything here is an allow-list with a strict check both
ways, so that a mis-spelled key is an error and not a tensor that silently trains nothing.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor, nn

SharedSpec = dict[str, tuple[int, ...]]
"""Names and shapes of the shared tensors: the contract between sites and server."""


class Ownership(StrEnum):
    """Who may see a tensor."""

    SHARED = "shared"
    PERSONAL = "personal"
    FROZEN = "frozen"


class ParameterError(ValueError):
    """A set of tensors is not what the contract says; the message lists the differences."""


@dataclass(frozen=True)
class LocalUpdate:
    """What one site returns from one round.

    Attributes:
        tensors: All shared tensors after local training, CPU fp32.
        num_examples: Training images used, >= 1.
        metrics: Scalars on the documented allow-list only (loss, seconds, steps, validation
            metrics).
        histograms: Score histograms of the received model on local validation data, int32.
    """

    tensors: dict[str, Tensor]
    num_examples: int
    metrics: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, Tensor] = field(default_factory=dict)


def ownership_of(model: nn.Module, shared_keys: Iterable[str]) -> dict[str, Ownership]:
    """Say of every tensor in the model's state dict who may see it.

    Args:
        model: Its state dict holds every trained tensor; frozen towers may be left out of it.
        shared_keys: Names that leave the site.

    Raises:
        ParameterError: A shared key is not in the state dict or names a frozen tensor.
    """
    shared = set(shared_keys)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    state = model.state_dict()
    unknown = sorted(shared - state.keys())
    if unknown:
        raise ParameterError(
            f"shared keys not in the model: {unknown}; the model has {sorted(state)}"
        )
    frozen_shared = sorted(shared - trained)
    if frozen_shared:
        raise ParameterError(f"shared keys that are never trained: {frozen_shared}")
    return {
        name: Ownership.SHARED
        if name in shared
        else Ownership.PERSONAL
        if name in trained
        else Ownership.FROZEN
        for name in state
    }


def shared_state(model: nn.Module, shared_keys: Iterable[str]) -> dict[str, Tensor]:
    """Copy the shared tensors to CPU fp32, in sorted order. The copies do not alias the model."""
    state = model.state_dict()
    missing = sorted(set(shared_keys) - state.keys())
    if missing:
        raise ParameterError(
            f"shared keys not in the model: {missing}; the model has {sorted(state)}"
        )
    return {
        name: state[name].detach().to("cpu", torch.float32, copy=True)
        for name in sorted(shared_keys)
    }


def personal_state(model: nn.Module, shared_keys: Iterable[str]) -> dict[str, Tensor]:
    """Copy the personal tensors (trained, not shared) to CPU, in sorted order."""
    owners = ownership_of(model, shared_keys)
    state = model.state_dict()
    names = sorted(name for name, owner in owners.items() if owner is Ownership.PERSONAL)
    return {name: state[name].detach().to("cpu", copy=True) for name in names}


def spec_of(tensors: Mapping[str, Tensor]) -> SharedSpec:
    """Names and shapes of `tensors`, in sorted order."""
    return {name: tuple(tensors[name].shape) for name in sorted(tensors)}


def describe_difference(
    expected: Mapping[str, tuple[int, ...]], got: Mapping[str, tuple[int, ...]]
) -> str:
    """Readable difference of two specs; empty where they agree."""
    parts = []
    missing = sorted(expected.keys() - got.keys())
    unknown = sorted(got.keys() - expected.keys())
    if missing:
        parts.append(f"missing: {missing}")
    if unknown:
        parts.append(f"unknown: {unknown}")
    for name in sorted(expected.keys() & got.keys()):
        if tuple(expected[name]) != tuple(got[name]):
            parts.append(f"{name}: expected shape {tuple(expected[name])}, got {tuple(got[name])}")
    return "; ".join(parts)


def check_shared(
    spec: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], source: str
) -> None:
    """Check names, shapes, type and finiteness of `tensors` against the contract.

    Args:
        spec: Names and shapes that are expected, no more and no fewer.
        tensors: What came.
        source: Who sent it, for the message.

    Raises:
        ParameterError: Any difference; all of them are listed.
    """
    difference = describe_difference(spec, spec_of(tensors))
    if difference:
        raise ParameterError(f"tensors from {source} do not match the shared set: {difference}")
    wrong_type = sorted(name for name, value in tensors.items() if value.dtype != torch.float32)
    if wrong_type:
        raise ParameterError(f"tensors from {source} must be float32: {wrong_type}")
    not_finite = sorted(name for name, value in tensors.items() if not torch.isfinite(value).all())
    if not_finite:
        raise ParameterError(f"tensors from {source} hold NaN or infinity: {not_finite}")


def apply_shared(
    model: nn.Module, tensors: Mapping[str, Tensor], shared_keys: Iterable[str]
) -> None:
    """Write the received shared tensors into the model; everything else stays.

    Raises:
        ParameterError: Names, shapes, type or values are not those of the model's shared set.
    """
    spec = spec_of(shared_state(model, shared_keys))
    check_shared(spec, tensors, "the server")
    state = model.state_dict()
    with torch.no_grad():
        for name in spec:
            state[name].copy_(tensors[name])


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 over names, shapes and bytes, in sorted order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def update_norm(new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> float:
    """Euclidean norm of `new - old` over all tensors, accumulated in fp64."""
    total = sum(
        float((new[name].double() - old[name].double()).pow(2).sum()) for name in sorted(old)
    )
    return float(total**0.5)
