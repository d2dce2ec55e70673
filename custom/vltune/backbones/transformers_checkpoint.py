"""What every checkpoint of a native class of transformers needs: find it, check it, hash it."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from vltune.backbones.checkpoint import BackboneConfig, BackboneError
from vltune.files import sha256_file, sha256_json

PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
"""Where transformers 5 keeps the image processor's values, under `image_processor`."""
_MESSAGE_KEYS = 4


@dataclass(frozen=True)
class Family:
    """How messages name a kind of checkpoint.

    Attributes:
        name: Such as "Florence-2".
        model_type: In config.json.
        converted: Checkpoints that load.
        converter: Where the script is that converts an original.
    """

    name: str
    model_type: str
    converted: str
    converter: str


def folder_or_id(config: BackboneConfig, family: Family) -> str:
    """A local folder, or what looks like a hub id; the hash is compared where files are local.

    Raises:
        BackboneError: Neither, or another hash.
    """
    folder = Path(config.weights).expanduser()
    if folder.is_dir():
        weights = folder / "model.safetensors"
        if config.sha256:
            found = sha256_file(weights) if weights.is_file() else "absent"
            if found != config.sha256.lower():
                raise BackboneError(
                    f"{weights}: SHA-256 is {found}, the job expects {config.sha256.lower()}. "
                    "Get the checkpoint that the job was written for."
                )
        return str(folder)
    is_id = config.weights.count("/") == 1 and not config.weights.startswith((".", "~", "/"))
    if not is_id or config.weights.startswith("assets/"):
        raise BackboneError(
            f"backbone.weights {config.weights!r}: no such folder (looked at {folder.resolve()}). "
            f"Give a folder with a converted {family.name}, or a hub id: {family.converted}."
        )
    if config.sha256:
        raise BackboneError(
            f"backbone.weights {config.weights!r}: sha256 can be compared with a local folder "
            "only. Download the checkpoint and give its folder."
        )
    return config.weights


def read_json(source: str, name: str, family: Family) -> dict[str, Any]:
    """Read a mapping of a folder or hub id.

    Raises:
        BackboneError: It cannot be read, or is no mapping.
    """
    path = Path(source) / name
    try:
        if not Path(source).is_dir():
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(source, name))
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BackboneError(
            f"{path}: cannot be read ({error}). A {family.name} checkpoint has config.json and "
            f"{PREPROCESSOR}; without network give a local folder."
        ) from error
    if not isinstance(content, dict):
        raise BackboneError(f"{path}: expected a mapping at the top")
    return content


def read_image_processor(source: str, family: Family) -> dict[str, Any]:
    """The image processor's values, wherever this version of transformers wrote them."""
    try:
        return read_json(source, PREPROCESSOR, family)
    except BackboneError as error:
        try:
            values = read_json(source, PROCESSOR, family).get("image_processor")
        except BackboneError:
            raise error from None
        if not isinstance(values, dict):
            raise error
        return values


def load_native(
    build: Callable[..., tuple[Any, dict[str, Any]]], source: str, family: Family
) -> tuple[Any, Any]:
    """Load model (fp32) and tokenizer; run no code of the checkpoint.

    Args:
        build: `from_pretrained` of the native class.
        source: Folder or hub id.
        family: For messages.

    Raises:
        BackboneError: It is damaged, or a tensor is missing, left over or of another shape.
    """
    from transformers import AutoTokenizer

    try:
        model, report = build(
            source,
            dtype="float32",
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,  # the other format is a pickle
        )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise BackboneError(
            f"{source}: cannot be loaded as {family.name} ({error}). Copy the checkpoint again."
        ) from error
    _check_report(report, source)
    return model, tokenizer


def _check_report(report: dict[str, Any], source: str) -> None:
    """Random or left-over weights are only a warning in transformers."""
    problems = [f"{key}: missing" for key in report["missing_keys"]]
    problems += [f"{key}: unknown to the model" for key in report["unexpected_keys"]]
    problems += [f"{key[0]}: another shape" for key in report["mismatched_keys"]]
    if problems:
        raise BackboneError(
            f"{source}: {len(problems)} tensors do not fit the architecture, such as "
            f"{'; '.join(sorted(problems)[:_MESSAGE_KEYS])}. Get the whole converted checkpoint."
        )


def settings_of(config: Any, parts: Sequence[str]) -> dict[str, Any]:
    """The sub-configurations that decide what a model computes."""
    return {
        part: {
            key: value
            for key, value in getattr(config, part).to_dict().items()
            if not key.startswith("_") and key not in ("dtype", "transformers_version")
        }
        for part in parts
    }


def hash_model(settings: Mapping[str, Any], model: nn.Module) -> str:
    """Hex SHA-256 of architecture and weights, as they are now."""
    digest = hashlib.sha256(sha256_json(settings).encode())
    for key, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"\0{key}{tuple(value.shape)}".encode())
        digest.update(memoryview(value.numpy()).cast("B"))
    return digest.hexdigest()
