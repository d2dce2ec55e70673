"""Read a checkpoint's tensors and load them strictly.

open_clip interpolates positions of another length without a word; here every difference between
file and model is an error.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vltune.backbones.checkpoint import BackboneError, is_openai_archive

_OPENAI_SCALARS = ("input_resolution", "context_length", "vocab_size")
_MESSAGE_KEYS = 4


def read_state(path: Path, *, is_known: bool = False) -> dict[str, Tensor]:
    """Read the tensors of a ``.safetensors`` file; of a known file, a ``.pt`` or OpenAI's archive.

    Args:
        path: The file.
        is_known: Its SHA-256 was compared. Other formats than safetensors are pickles and programs
            for torch to run; torch's own restrictions of them have been broken before.

    Raises:
        BackboneError: Not safetensors and not known, damaged, or no state dict.
    """
    if path.suffix != ".safetensors" and not is_known:
        raise BackboneError(
            f"{path}: is no .safetensors file, and other formats may hold code. Convert it, or "
            "name the file's SHA-256 as the job's backbone.sha256 to say that you know it."
        )
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        elif is_openai_archive(path):
            state = _read_archive(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state) if isinstance(state, dict) else state
    # A damaged file makes torch's readers raise nearly anything.
    except Exception as error:
        raise BackboneError(
            f"{path}: cannot be read as a checkpoint ({error}). Copy it again; compare its SHA-256."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise BackboneError(f"{path}: expected a state dict of tensors")
    return {key.removeprefix("module."): tensor for key, tensor in state.items()}


def _read_archive(path: Path) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        # torch announces the end of TorchScript; OpenAI publishes CLIP in no other format.
        warnings.simplefilter("ignore", FutureWarning)
        archive = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call] # torch
    return {k: v for k, v in archive.state_dict().items() if k not in _OPENAI_SCALARS}


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Load `state` into `model`: the same keys, the same shapes, finite values; never interpolated.

    Raises:
        BackboneError: A key is missing or unknown, a shape differs, or a value is NaN or infinite.
    """
    expected = model.state_dict()
    state = _match_layout(state, expected)
    problems = [f"{key}: missing in the file" for key in expected.keys() - state.keys()]
    problems += [f"{key}: unknown to the model" for key in state.keys() - expected.keys()]
    problems += [
        f"{key}: file {tuple(state[key].shape)}, model {tuple(expected[key].shape)}"
        for key in expected.keys() & state.keys()
        if state[key].shape != expected[key].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:_MESSAGE_KEYS])
        hint = " Positions of another length are refused, not interpolated."
        raise BackboneError(
            f"{source}: {len(problems)} tensors do not fit the architecture, such as {shown}. "
            "Give the checkpoint of this model or name its architecture."
            + (hint if "positional_embedding" in " ".join(problems) else "")
        )
    broken = [k for k, v in state.items() if v.is_floating_point() and not bool(v.isfinite().all())]
    if broken:
        raise BackboneError(f"{source}: NaN or infinite values in {broken[0]}; the file is damaged")
    model.load_state_dict(state)


def _match_layout(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename between open_clip's two layouts (text tower at the top or under ``text.``)."""
    has_text = any(key.startswith("text.") for key in state)
    wants_text = any(key.startswith("text.") for key in expected)
    renamed = dict(state)
    if has_text and not wants_text:
        renamed = {key.removeprefix("text."): tensor for key, tensor in state.items()}
    elif wants_text and not has_text:
        renamed = {
            f"text.{key}" if f"text.{key}" in expected else key: tensor
            for key, tensor in state.items()
        }
    for key in ("logit_scale", "logit_bias"):
        if key in renamed and key in expected and renamed[key].numel() == expected[key].numel():
            renamed[key] = renamed[key].reshape(expected[key].shape)
    return renamed
