"""Write LoRA factors, and a residual, as a plain PEFT adapter folder.

`peft.PeftModel.from_pretrained(base_model, folder)` loads it without VLTune. A residual R becomes
further directions of the same adapter: [B R_B] [A; R_A] = B A + R, at the same scale.
"""

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save
from torch import Tensor

from vltune.files import OutputError
from vltune.lora_factors import Factors, LoraError, LoraSettings, name_factors, pair_factors
from vltune.lora_residual import read_residual
from vltune.parameters import check_shared, spec_of

WEIGHTS_FILE = "adapter_model.safetensors"


def export_peft(
    tensors: Mapping[str, Tensor],
    settings: LoraSettings,
    base_model_name: str,
    folder: Path,
    residual: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write `adapter_config.json` and `adapter_model.safetensors`, both or neither.

    Args:
        tensors: Both factors of each module by wire name, CPU fp32: for a personal export the
            global ones and the site's own together.
        settings: What the factors were trained with.
        base_model_name: Folder or hub id of the base model, for the reader.
        folder: A new folder, or one that holds nothing but an earlier export, which is replaced.
        residual: The residual by wire name, if the mode has one.

    Returns:
        The folder.

    Raises:
        ParameterError: The factors are no pairs, not finite fp32, or the residual does not fit.
        OutputError: The folder holds something else, or cannot be written.
    """
    check_shared(spec_of(tensors), tensors, "the export")
    pairs = pair_factors(tensors, "the export")
    if not pairs:
        raise LoraError("nothing to export: no LoRA factors")
    pairs = _with_residual(pairs, residual or {})
    _check_folder(folder)
    config = _config(pairs, settings, base_model_name)
    named = {name: value.contiguous() for name, value in name_factors(pairs).items()}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            fresh = Path(temporary) / "fresh"
            fresh.mkdir()
            config.save_pretrained(str(fresh))
            (fresh / WEIGHTS_FILE).write_bytes(save(named, metadata={"format": "pt"}))
            _put_in_place(fresh, folder, Path(temporary) / "old")
    except OSError as error:
        raise OutputError(
            f"cannot write {folder}: {error.strerror}. Free space or choose another place."
        ) from error
    return folder


def _with_residual(pairs: dict[str, Factors], residual: Mapping[str, Tensor]) -> dict[str, Factors]:
    """Each module's factors with the residual's directions after its own."""
    parts = read_residual(residual, "the export")
    unknown = sorted(parts.keys() - pairs.keys())
    if unknown:
        raise LoraError(f"residual of modules without factors: {unknown}")
    joined = dict(pairs)
    for module, part in parts.items():
        a, b = pairs[module]
        if part.a.shape[1] != a.shape[1] or part.b.shape[0] != b.shape[0]:
            raise LoraError(
                f"residual of {module}: expected {b.shape[0]} x {a.shape[1]}, got "
                f"{part.b.shape[0]} x {part.a.shape[1]}"
            )
        joined[module] = Factors(torch.cat([a, part.a]), torch.cat([b, part.b], dim=1))
    return joined


def _config(
    pairs: Mapping[str, Factors], settings: LoraSettings, base_model_name: str
) -> LoraConfig:
    """The adapter's configuration; modules of another rank get their own, at the same scale."""
    other = {f"^{re.escape(m)}": pair.rank for m, pair in pairs.items()}
    ranks = {pattern: rank for pattern, rank in other.items() if rank != settings.rank}
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type] # peft divides it, a float serves
        lora_dropout=settings.dropout,
        target_modules=settings.target,
        rank_pattern=ranks,
        alpha_pattern={pattern: settings.scale * rank for pattern, rank in ranks.items()},
        bias="none",
        base_model_name_or_path=base_model_name,
        inference_mode=True,
    )


def _put_in_place(fresh: Path, folder: Path, old: Path) -> None:
    """Rename `fresh` to `folder`; what was there goes to `old`, and back if that fails."""
    had_one = folder.exists()
    if had_one:
        folder.rename(old)
    try:
        fresh.rename(folder)
    except OSError:
        if had_one:
            old.rename(folder)
        raise


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir() or (set(os.listdir(folder)) - {"adapter_config.json", WEIGHTS_FILE}):
        raise OutputError(
            f"{folder} holds something else than an exported adapter. Choose another folder."
        )
