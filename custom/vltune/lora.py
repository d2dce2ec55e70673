"""LoRA on a torch model with peft: which modules, from which start, and the factors in and out.

The start depends on the seed and the module's name and on nothing else, so that every site, also a
late one, begins with the same A; B is zero. peft returns silently from a wrong key and puts LoRA on
whatever a pattern matches; here both are errors.
"""

import contextlib
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from vltune.lora_factors import (
    WIRE_PREFIX,
    Kind,
    LoraError,
    LoraSettings,
    factor_name,
    names_of_kinds,
    parse_factor_name,
)
from vltune.lora_residual import read_residual
from vltune.parameters import check_shared, spec_of
from vltune.seed import derive_seed, torch_generator

ADAPTER = "default"
_BOTH: tuple[Kind, Kind] = ("A", "B")
_NAMES_SHOWN = 8


def add_lora(model: nn.Module, settings: LoraSettings, seed: int, *, allowed: str) -> PeftModel:
    """Put LoRA on the modules that `settings.target` matches; the model is changed in place.

    Args:
        model: The base model; all of it is frozen.
        settings: Rank, scale, dropout and target.
        seed: Of A, the same at every site.
        allowed: The backbone's own pattern: every module hit must have a name that starts with a
            match of it, so that a careless target does not reach another tower.

    Returns:
        The model with factors A uniform in +-1/sqrt(D_in), as peft's own start, and B zero.

    Raises:
        LoraError: The target hits no module, one that is not allowed, or one on which LoRA does not
            work; or the model has an adapter already.
    """
    modules = target_modules(model, settings, allowed=allowed)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type] # peft divides it, a float serves
        lora_dropout=settings.dropout,
        target_modules=settings.target,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft asks transformers 5 for an attribute by its old name.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        wrapped = get_peft_model(model, config)
    parameters = _factor_parameters(wrapped)
    expected = {factor_name(module, kind) for module in modules for kind in _BOTH}
    if parameters.keys() != expected:
        raise LoraError(f"peft made other factors: {sorted(parameters.keys() ^ expected)}")
    with torch.no_grad():
        for module in modules:
            a = parameters[factor_name(module, "A")]
            a.copy_(seeded_a(seed, module, a.shape[0], a.shape[1]))
            parameters[factor_name(module, "B")].zero_()
    return wrapped


def seeded_a(seed: int, module: str, rank: int, columns: int) -> Tensor:
    """The start of a module's A (rank, D_in), fp32: uniform in +-1/sqrt(D_in).

    A smaller rank gives the first rows of a larger one.
    """
    generator = torch_generator(derive_seed(seed, "", 0, f"lora_A {module}"))
    values = [torch.rand(columns, generator=generator) for _ in range(rank)]
    return (2 * torch.stack(values) - 1) / math.sqrt(columns)


def seeded_factors(factors: Mapping[str, Tensor], rank: int, seed: int) -> dict[str, Tensor]:
    """The start that `add_lora` gives at another rank: A seeded, B zero; by wire name.

    Args:
        factors: Of a model, for modules and widths.
        rank: Wanted.
        seed: As given to `add_lora`.
    """
    start = {}
    for name, value in sorted(factors.items()):
        module, kind = parse_factor_name(name)
        is_a = kind == "A"
        start[name] = (
            seeded_a(seed, module, rank, value.shape[1])
            if is_a
            else value.new_zeros(value.shape[0], rank)
        )
    return start


def target_modules(model: nn.Module, settings: LoraSettings, *, allowed: str) -> list[str]:
    """Names of the modules that the target hits, sorted; arguments and errors as `add_lora`."""
    if isinstance(model, PeftModel) or any(".lora_A." in name for name, _ in model.named_modules()):
        raise LoraError("the model has LoRA already; load the base model again")
    names = dict(model.named_modules())
    hits = sorted(name for name in names if re.fullmatch(settings.target, name))
    if not hits:
        near = [n for n, m in names.items() if re.match(allowed, n) and isinstance(m, nn.Linear)]
        raise LoraError(
            f"target {settings.target!r} is no whole name of a module; allowed linear modules: "
            f"{_some(near)}"
        )
    stray = [name for name in hits if not re.match(allowed, name)]
    if stray:
        raise LoraError(
            f"target {settings.target!r} hits {len(stray)} of {len(hits)} modules outside "
            f"{allowed!r}: {_some(stray)}. Begin the target with the allowed part of the name."
        )
    tied = _tied_names(model)
    wrong = [why for name in hits for why in _objections(name, names, settings.rank, tied)]
    if wrong:
        raise LoraError(f"target {settings.target!r}: {'; '.join(wrong[:_NAMES_SHOWN])}")
    return hits


def _objections(
    name: str, names: Mapping[str, nn.Module], rank: int, tied: Mapping[str, str]
) -> list[str]:
    """Why LoRA must not go on this module; empty where it may."""
    module, parent = names[name], names.get(name.rpartition(".")[0])
    if isinstance(module, nn.MultiheadAttention) or isinstance(parent, nn.MultiheadAttention):
        return [f"{name} belongs to nn.MultiheadAttention, where peft adds out_proj twice or never"]
    if name in tied:
        return [f"{name} shares its weight with {tied[name]}; LoRA would untie them"]
    if not isinstance(module, nn.Linear):
        return [f"{name} is {type(module).__name__}, expected Linear"]
    if rank > min(module.in_features, module.out_features):
        return [f"rank {rank} exceeds {name} ({module.out_features} x {module.in_features})"]
    return []


def _tied_names(model: nn.Module) -> dict[str, str]:
    """Modules that hold a parameter which another module holds too, with that module."""
    owners: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(value), []).append(name.rpartition(".")[0])
    shared = [names for names in owners.values() if len(set(names)) > 1]
    return {a: next(b for b in names if b != a) for names in shared for a in names}


def read_factors(model: PeftModel, kinds: Iterable[Kind] = _BOTH) -> dict[str, Tensor]:
    """Copy the factors of these kinds to CPU fp32, by wire name, sorted; nothing is aliased."""
    parameters = _factor_parameters(model)
    return {
        name: parameters[name].detach().to("cpu", torch.float32, copy=True)
        for name in names_of_kinds(parameters, kinds)
    }


def write_factors(
    model: PeftModel,
    tensors: Mapping[str, Tensor],
    kinds: Iterable[Kind] = _BOTH,
    source: str = "the server",
) -> None:
    """Write received factors into the model; it must be exactly those of these kinds.

    Args:
        model: From `add_lora`.
        tensors: By wire name.
        kinds: Which factors.
        source: Where they come from, for the message.

    Raises:
        ParameterError: A name is missing or unknown, or a shape, type or value is wrong; all
            differences are listed and nothing was written.
    """
    parameters = _factor_parameters(model)
    spec = spec_of({name: parameters[name] for name in names_of_kinds(parameters, kinds)})
    check_shared(spec, tensors, source)
    with torch.no_grad():
        for name in spec:
            parameters[name].copy_(tensors[name])


def train_factors(model: PeftModel, kinds: Iterable[Kind]) -> None:
    """Train the factors of these kinds and freeze the others.

    Needed again after `set_adapter`, which makes all factors trainable.
    """
    wanted = frozenset(kinds)
    for name, parameter in _factor_parameters(model).items():
        parameter.requires_grad_(parse_factor_name(name)[1] in wanted)


@contextlib.contextmanager
def without_lora(model: PeftModel) -> Iterator[None]:
    """The base model for a while; afterwards the same factors are trained as before.

    peft's own `disable_adapter` makes every factor trainable when it is left.
    """
    trained = {name: p.requires_grad for name, p in _factor_parameters(model).items()}
    try:
        with model.disable_adapter():
            yield
    finally:
        for name, parameter in _factor_parameters(model).items():
            parameter.requires_grad_(trained[name])


def set_residual(model: PeftModel, tensors: Mapping[str, Tensor], settings: LoraSettings) -> None:
    """Add the server's residual to the outputs: scale * R x beside the base and LoRA, frozen.

    It replaces the residual of an earlier call and is no part of the model's state dict.

    Args:
        model: From `add_lora`.
        tensors: The residual by wire name (`lora_residual`); empty takes it away.
        settings: Its scale also holds for the residual.

    Raises:
        LoraError: A residual is damaged, of a module without LoRA, or of another shape.
    """
    layers: dict[str, Any] = {
        parse_factor_name(name)[0]: model.get_submodule(name.removesuffix(".lora_A.weight"))
        for name in names_of_kinds(_factor_parameters(model), ("A",))
    }
    parts = read_residual(tensors, "the server")
    unknown = sorted(parts.keys() - layers.keys())
    if unknown:
        raise LoraError(f"residual of modules without LoRA: {unknown}")
    for module, factors in parts.items():
        shape = (factors.b.shape[0], factors.a.shape[1])
        expected = tuple(layers[module].base_layer.weight.shape)
        if shape != expected:
            raise LoraError(f"residual of {module}: expected {expected}, got {shape}")
    for module, layer in layers.items():
        part, device = parts.get(module), layer.base_layer.weight.device
        a = part.a.to(device) if part else None
        b = settings.scale * part.b.to(device) if part else None
        layer.register_buffer("residual_a", a, persistent=False)
        layer.register_buffer("residual_b", b, persistent=False)
        # One hook a layer, so that a later call does not add the residual twice.
        if _add_residual not in layer._forward_hooks.values():
            layer.register_forward_hook(_add_residual)


def _add_residual(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Forward hook of a layer with LoRA: (..., D_out) plus its residual of (..., D_in)."""
    if layer.residual_a is None:
        return output
    x = inputs[0].to(layer.residual_a.dtype)
    residual: Tensor = (x @ layer.residual_a.T) @ layer.residual_b.T
    return output + residual.to(output.dtype)


def _factor_parameters(model: PeftModel) -> dict[str, nn.Parameter]:
    """Parameters of the factors by wire name.

    Raises:
        LoraError: The model has none, or adapters of another kind.
    """
    found = {}
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            continue
        wire = name.replace(f".{ADAPTER}.weight", ".weight")
        if wire == name or not wire.startswith(WIRE_PREFIX):
            raise LoraError(f"{name} is not a factor of adapter {ADAPTER!r} as add_lora makes it")
        parse_factor_name(wire)
        found[wire] = parameter
    if not found:
        raise LoraError("the model has no LoRA factors; call add_lora first")
    return found


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN]) or "none"
    return shown + (f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else "")
