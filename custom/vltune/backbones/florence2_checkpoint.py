"""Find and check a Florence-2 checkpoint for transformers' own class.

Two formats carry the name. Microsoft's originals bring their own code (`auto_map` in config.json,
a `davit` vision tower) and other tensor names; transformers' class reads converted checkpoints. An
original loaded into it would leave nearly every weight random with a warning; here it is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor

from vltune.backbones.checkpoint import BackboneConfig, BackboneError
from vltune.backbones.transformers_checkpoint import (
    PREPROCESSOR,
    Family,
    folder_or_id,
    hash_model,
    load_native,
    read_image_processor,
    read_json,
    settings_of,
)

CONVERTED = (
    "florence-community/Florence-2-base, -base-ft, -large or -large-ft on the Hugging Face hub"
)
CONVERTER = (
    "src/transformers/models/florence2/convert_florence2_original_pytorch_to_hf.py of "
    "transformers' repository (it is not in the installed package)"
)
FAMILY = Family("Florence-2", "florence2", CONVERTED, CONVERTER)
_RESAMPLING = {2: "bilinear", 3: "bicubic"}


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
    from transformers import Florence2ForConditionalGeneration

    source = folder_or_id(config, FAMILY)
    _refuse_original(read_json(source, "config.json", FAMILY), source)
    model, tokenizer = load_native(
        Florence2ForConditionalGeneration.from_pretrained, source, FAMILY
    )
    _check_tokens(model, tokenizer, source)
    return Florence2Parts(model, tokenizer, read_image_processor(source, FAMILY), source)


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
    return hash_model(settings_of(model.config, ("vision_config", "text_config")), model)
