"""Where a backbone's weights are, and which architecture and preprocessing belong to them.

open_clip only logs when it has no weights, and takes its default preprocessing for a bare file.
Here both are errors.
"""

import dataclasses
import difflib
import json
import logging
import re
import zipfile
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import download_pretrained, get_pretrained_cfg
from open_clip.transform import PreprocessCfg

from vltune.files import sha256_file

logger = logging.getLogger(__name__)

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
PREPROCESS_KEYS = tuple(field.name for field in dataclasses.fields(PreprocessCfg))


class BackboneError(ValueError):
    """The backbone cannot be built; the message names file, value and cure."""


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """Which frozen model a job uses.

    Attributes:
        model: An open_clip architecture such as ``ViT-B-16``. With a folder as weights any label is
            allowed; a label that names an architecture must agree with the folder's.
        weights: A ``.safetensors`` file (``.pt`` too where `sha256` names it), a folder with
            ``open_clip_config.json`` and ``open_clip_model.safetensors``, or a pretrained tag of
            open_clip.
        sha256: Expected hash of the weights file; empty: not compared.
    """

    model: str
    weights: str
    sha256: str = ""

    def __post_init__(self) -> None:
        if not self.model.strip() or not self.weights.strip():
            raise BackboneError(
                f"backbone needs a model and weights, got model={self.model!r}, "
                f"weights={self.weights!r}; a backbone never starts from random weights"
            )
        if self.sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", self.sha256):
            raise BackboneError(f"backbone sha256: expected 64 hex digits, got {self.sha256!r}")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A located checkpoint: everything needed to build the model, nothing loaded yet.

    Attributes:
        path: Weights file.
        model_cfg: open_clip's model configuration.
        preprocess: open_clip's preprocessing values; ``size`` may be absent.
        tokenizer: Name for `open_clip.get_tokenizer`.
    """

    path: Path
    model_cfg: dict[str, Any]
    preprocess: dict[str, Any]
    tokenizer: str


def locate(config: BackboneConfig) -> Checkpoint:
    """Find the weights, architecture and preprocessing that `config` names; verify the hash.

    Raises:
        BackboneError: No such file, folder, tag or architecture; the folder's architecture is not
            the named one; the preprocessing is unknown; the SHA-256 differs.
    """
    weights = Path(config.weights).expanduser()
    if weights.is_dir():
        checkpoint = _locate_folder(weights, config.model)
    elif weights.is_file():
        checkpoint = _locate_file(weights, config.model)
    else:
        checkpoint = _locate_tag(config)
    if config.sha256:
        found = sha256_file(checkpoint.path)
        if found != config.sha256.lower():
            raise BackboneError(
                f"{checkpoint.path}: SHA-256 is {found}, the job expects {config.sha256.lower()}. "
                "Get the checkpoint that the job was written for."
            )
    return checkpoint


def _locate_folder(folder: Path, model: str) -> Checkpoint:
    for name in WEIGHTS_NAMES:
        if (folder / name).is_file():
            return _with_folder_config(folder / name, model)
    raise BackboneError(
        f"{folder.resolve()}: holds no {' or '.join(WEIGHTS_NAMES)}. "
        "Put the weights there or give the path of the weights file."
    )


def _with_folder_config(path: Path, model: str) -> Checkpoint:
    """Read the `open_clip_config.json` beside `path`."""
    source = path.parent / CONFIG_NAME
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
        model_cfg, preprocess = content["model_cfg"], content["preprocess_cfg"]
        missing = [key for key in ("mean", "std") if key not in preprocess]
    except FileNotFoundError as error:
        raise BackboneError(
            f"{source.resolve()}: no such file. Weights in a folder need open_clip's configuration."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BackboneError(
            f"{source}: expected JSON with model_cfg and preprocess_cfg: {error!r}"
        ) from error
    if missing:
        raise BackboneError(
            f"{source}: preprocess_cfg lacks {', '.join(missing)}; "
            "the default would silently feed the tower wrong pixels"
        )
    named = open_clip.get_model_config(model)
    if named is not None and canonical_architecture(named) != canonical_architecture(model_cfg):
        raise BackboneError(
            f"{source}: describes another architecture than {model!r}. "
            "Correct backbone.model, or give the folder of that model."
        )
    return Checkpoint(path, model_cfg, preprocess, f"local-dir:{path.parent}")


def _locate_file(path: Path, model: str) -> Checkpoint:
    if (path.parent / CONFIG_NAME).is_file():
        return _with_folder_config(path, model)
    model_cfg = _named_architecture(model)
    plain_name = model.removesuffix("-quickgelu")
    tags = [
        get_pretrained_cfg(name, tag)
        for name in {model, plain_name}
        for tag in open_clip.list_pretrained_tags_by_model(name)
    ]
    if is_openai_archive(path):
        # OpenAI's own file of a model: only it is a TorchScript archive, and it needs QuickGELU.
        tags = [get_pretrained_cfg(plain_name, "openai")]
        model_cfg["quick_gelu"] = True
    elif len({bool(tag.get("quick_gelu")) for tag in tags}) > 1:
        logger.info("%s: read with quick_gelu=%s", path, model_cfg.get("quick_gelu", False))
    choices = {json.dumps(_preprocess_of(tag), sort_keys=True): tag for tag in tags if tag}
    if len(choices) != 1:
        raise BackboneError(
            f"{path}: the preprocessing of this {model!r} file is not known "
            f"({len(choices)} are in use for that model). "
            f"Put the checkpoint's {CONFIG_NAME} beside it."
        )
    return Checkpoint(path, model_cfg, _preprocess_of(next(iter(choices.values()))), model)


def _locate_tag(config: BackboneConfig) -> Checkpoint:
    known = open_clip.list_pretrained_tags_by_model(config.model)
    tag = get_pretrained_cfg(config.model, config.weights)
    if not tag:
        hint = f"tags of {config.model}: {', '.join(known)}" if known else "that model has no tags"
        raise BackboneError(
            f"backbone.weights {config.weights!r}: neither a file, nor a folder (looked at "
            f"{Path(config.weights).expanduser().resolve()}), nor a pretrained tag ({hint})"
        )
    model_cfg = _named_architecture(config.model)
    model_cfg["quick_gelu"] = bool(tag.get("quick_gelu", model_cfg.get("quick_gelu", False)))
    try:
        path = Path(download_pretrained(tag))
    except (OSError, RuntimeError, ValueError) as error:
        raise BackboneError(
            f"backbone.weights {config.weights!r} of {config.model}: cannot be fetched ({error}). "
            "Without network give the path of a weights file or folder."
        ) from error
    return Checkpoint(path, model_cfg, _preprocess_of(tag), config.model)


def _named_architecture(model: str) -> dict[str, Any]:
    model_cfg: dict[str, Any] | None = open_clip.get_model_config(model)
    if model_cfg is None:
        close = difflib.get_close_matches(model, open_clip.list_models(), n=3)
        raise BackboneError(
            f"backbone.model {model!r}: not an architecture of open_clip"
            + (f" (did you mean {', '.join(close)}?)" if close else "")
            + f". For your own model give a folder with {CONFIG_NAME}."
        )
    return deepcopy(model_cfg)


def _preprocess_of(tag: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tag[key] for key in PREPROCESS_KEYS if key in tag}


def canonical_architecture(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration with every default filled in, so that equal models compare equal.

    Raises:
        BackboneError: A part is missing, or a key is unknown to this version of open_clip.
    """
    try:
        vision = dataclasses.asdict(open_clip.CLIPVisionCfg(**model_cfg["vision_cfg"]))
        text = dataclasses.asdict(open_clip.CLIPTextCfg(**model_cfg["text_cfg"]))
        embed_dim = int(model_cfg["embed_dim"])
    except (KeyError, TypeError, ValueError) as error:
        raise BackboneError(
            f"model_cfg: not a model configuration of open_clip: {error!r}"
        ) from error
    vision.pop("timm_model_pretrained")
    quick_gelu = bool(model_cfg.get("quick_gelu", False))
    return {"embed_dim": embed_dim, "quick_gelu": quick_gelu, "vision": vision, "text": text}


def is_openai_archive(path: Path) -> bool:
    """Return whether `path` is a TorchScript archive, the format of OpenAI's own files."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("constants.pkl") for name in archive.namelist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False
