"""Find and check a Florence-2 checkpoint for transformers' own class.

Two formats carry the name. Microsoft's originals bring their own code (`auto_map` in config.json,
a `davit` vision tower) and other tensor names; transformers' class reads converted checkpoints. An
original loaded into it would leave nearly every weight random with a warning; here it is refused.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors import SafetensorError
from torch import Tensor

from vltune.backbones.checkpoint import BackboneConfig, BackboneError
from vltune.files import sha256_file, sha256_json

CONVERTED = (
    "florence-community/Florence-2-base, -base-ft, -large or -large-ft on the Hugging Face hub"
)
CONVERTER = (
    "src/transformers/models/florence2/convert_florence2_original_pytorch_to_hf.py of "
    "transformers' repository (it is not in the installed package)"
)
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
"""Where transformers 5 keeps the image processor's values, under `image_processor`."""
_RESAMPLING = {2: "bilinear", 3: "bicubic"}
_MESSAGE_KEYS = 4


@dataclass(frozen=True)
class Florence2Parts:
    """A loaded checkpoint.

    Attributes:
        model: transformers' Florence2ForConditionalGeneration, fp32, as loaded.
        tokenizer: A fast tokenizer.
        image_processor: Contents of the preprocessor's configuration.
        source: Folder or hub id, for messages.
    """

    model: Any
    tokenizer: Any
    image_processor: dict[str, Any]
    source: str


def load_parts(config: BackboneConfig) -> Florence2Parts:
    """Load model, tokenizer and preprocessing of a folder or hub id; run no code of it.

    Raises:
        BackboneError: See `florence2.load_florence2`.
    """
    from transformers import AutoTokenizer, Florence2ForConditionalGeneration

    source = _folder_or_id(config)
    settings = _read_json(source, "config.json")
    _refuse_original(settings, source)
    try:
        model, report = Florence2ForConditionalGeneration.from_pretrained(
            source, dtype="float32", output_loading_info=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise BackboneError(
            f"{source}: cannot be loaded as Florence-2 ({error}). Copy the checkpoint again."
        ) from error
    _check_report(report, source)
    _check_tokens(model, tokenizer, source)
    return Florence2Parts(model, tokenizer, _image_processor(source), source)


def _folder_or_id(config: BackboneConfig) -> str:
    """A local folder, or what looks like a hub id; the hash is compared where files are local."""
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
            f"Give a folder with a converted Florence-2, or a hub id: {CONVERTED}."
        )
    if config.sha256:
        raise BackboneError(
            f"backbone.weights {config.weights!r}: sha256 can be compared with a local folder "
            "only. Download the checkpoint and give its folder."
        )
    return config.weights


def _read_json(source: str, name: str) -> dict[str, Any]:
    path = Path(source) / name
    try:
        if not Path(source).is_dir():
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(source, name))
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"{path}: cannot be read ({error}). A Florence-2 checkpoint has config.json and "
            f"{PREPROCESSOR}; without network give a local folder."
        ) from error
    if not isinstance(content, dict):
        raise BackboneError(f"{path}: expected a mapping at the top")
    return content


def _image_processor(source: str) -> dict[str, Any]:
    try:
        return _read_json(source, PREPROCESSOR)
    except BackboneError as error:
        try:
            values = _read_json(source, PROCESSOR).get("image_processor")
        except BackboneError:
            raise error from None
        if not isinstance(values, dict):
            raise error
        return values


def _refuse_original(settings: dict[str, Any], source: str) -> None:
    vision = settings.get("vision_config", {}).get("model_type", "")
    if "auto_map" in settings or vision == "davit":
        raise BackboneError(
            f"{source}: is an original Florence-2 checkpoint that needs its own remote code, which "
            "is never run here, and whose tensor names transformers' class does not know. "
            f"Take a converted one ({CONVERTED}), or convert yours with {CONVERTER}."
        )
    if settings.get("model_type") != "florence2":
        raise BackboneError(
            f"{source}/config.json: model_type is {settings.get('model_type')!r}, expected "
            f"'florence2'. Converted checkpoints: {CONVERTED}."
        )


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


def _check_tokens(model: Any, tokenizer: Any, source: str) -> None:
    """A prompt is framed by the tokenizer; both must mean the same ids."""
    text = model.config.text_config
    ids = tokenizer("a")["input_ids"]
    is_framed = len(ids) >= 3 and ids[-1] == text.eos_token_id and ids[0] == text.bos_token_id
    if not is_framed or len(tokenizer) > text.vocab_size:
        raise BackboneError(
            f"{source}: the tokenizer does not fit the model: {len(tokenizer)} tokens for a "
            f"vocabulary of {text.vocab_size}, and 'a' becomes {ids} where start "
            f"{text.bos_token_id} and end {text.eos_token_id} were expected"
        )


def preprocess_of(parts: Florence2Parts) -> tuple[Callable[[Any], Tensor], dict[str, Any]]:
    """Turn the image processor's values into PIL image -> (3, H, W), and list the values.

    Raises:
        BackboneError: A value is missing, or asks for a step that Florence-2 has not (a crop).
    """
    given = parts.image_processor
    size, resample = given.get("size", {}), given.get("resample")
    problems = {
        "size needs height and width": not {"height", "width"} <= set(size),
        "do_center_crop is on": bool(given.get("do_center_crop")),
        f"resample {resample!r} is not known": resample not in _RESAMPLING,
        "image_mean and image_std are needed": not {"image_mean", "image_std"} <= set(given),
    }
    problem = "; ".join(text for text, is_so in problems.items() if is_so)
    if problem:
        raise BackboneError(
            f"{parts.source}/{PREPROCESSOR}: {problem}; a default would silently feed the tower "
            "wrong pixels"
        )
    values: dict[str, Any] = {
        "size": [int(size["height"]), int(size["width"])],
        "mode": "RGB",
        "mean": list(given["image_mean"]),
        "std": list(given["image_std"]),
        "interpolation": _RESAMPLING[given["resample"]],
        "resize_mode": "squash",
        "fill_color": 0,
    }
    config = PreprocessCfg(**{**values, "size": tuple(values["size"])})
    return image_transform_v2(config, is_train=False), values


def fingerprint_of(model: Any) -> str:
    """Hash architecture and weights, as they are now."""
    settings = {
        part: {
            key: value
            for key, value in getattr(model.config, part).to_dict().items()
            if not key.startswith("_") and key not in ("dtype", "transformers_version")
        }
        for part in ("vision_config", "text_config")
    }
    digest = hashlib.sha256(sha256_json(settings).encode())
    for key, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"\0{key}{tuple(value.shape)}".encode())
        digest.update(memoryview(value.numpy()).cast("B"))
    return digest.hexdigest()
