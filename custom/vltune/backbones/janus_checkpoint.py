"""Find and check a Janus checkpoint for transformers' own class.

DeepSeek's originals need code of their own repository and have other tensor names; transformers'
class reads converted checkpoints. An original is refused here, as is any tensor that does not fit.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vltune.backbones.checkpoint import BackboneConfig, BackboneError
from vltune.backbones.janus_pixels import set_norm_groups
from vltune.backbones.janus_settings import JanusSettings, read_settings
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
from vltune.config import to_mapping

FAMILY = Family(
    "Janus",
    "janus",
    "deepseek-community/Janus-Pro-1B or -7B on the Hugging Face hub",
    "src/transformers/models/janus/convert_janus_weights_to_hf.py of transformers' repository "
    "(it is not in the installed package)",
)
_RESAMPLING = {2: "bilinear", 3: "bicubic"}
_SPECIAL = ("image_token", "boi_token", "eoi_token", "bos_token", "eos_token", "pad_token")


@dataclass(frozen=True)
class JanusParts:
    """A loaded checkpoint.

    Attributes:
        model: transformers' JanusForConditionalGeneration, fp32, its GroupNorms set.
        tokenizer: A fast tokenizer that knows image, boi, eoi, bos, eos and pad tokens.
        image_processor: Contents of the preprocessor's configuration.
        settings: What the checkpoint itself does not say.
        source: Folder or hub id, for messages.
    """

    model: Any
    tokenizer: Any
    image_processor: dict[str, Any]
    settings: JanusSettings
    source: str


def load_parts(config: BackboneConfig) -> JanusParts:
    """Load model, tokenizer and preprocessing of a folder or hub id; run no code of it.

    Raises:
        BackboneError: See `janus.load_janus`.
    """
    from transformers import JanusForConditionalGeneration

    source = folder_or_id(config, FAMILY)
    _refuse_original(read_json(source, "config.json", FAMILY), source)
    settings = read_settings(Path(source)) if Path(source).is_dir() else JanusSettings()
    model, tokenizer = load_native(JanusForConditionalGeneration.from_pretrained, source, FAMILY)
    parts = JanusParts(model, tokenizer, read_image_processor(source, FAMILY), settings, source)
    check_parts(parts)
    set_norm_groups(model.model.vqmodel, settings.norm_groups)
    return parts


def _refuse_original(values: dict[str, Any], source: str) -> None:
    if "auto_map" in values or values.get("model_type") == "multi_modality":
        raise BackboneError(
            f"{source}: is an original Janus checkpoint that needs its own code, which is never "
            "run here, and whose tensor names transformers' class does not know. "
            f"Take a converted one ({FAMILY.converted}), or convert yours with {FAMILY.converter}."
        )
    if values.get("model_type") != FAMILY.model_type:
        raise BackboneError(
            f"{source}/config.json: model_type is {values.get('model_type')!r}, expected "
            f"{FAMILY.model_type!r}. Converted checkpoints: {FAMILY.converted}."
        )


def check_parts(parts: JanusParts) -> None:
    """Model, tokenizer and pixel tokenizer must mean the same ids and counts.

    Raises:
        BackboneError: They do not.
    """
    config, tokenizer = parts.model.config, parts.tokenizer
    missing = [name for name in _SPECIAL if getattr(tokenizer, name, None) is None]
    if missing:
        raise BackboneError(f"{parts.source}: the tokenizer has no {', '.join(missing)}")
    text, codes = config.text_config, parts.model.model.vqmodel.quantize.quant_state_dims
    expected = {
        "image_token_id": (config.image_token_id, tokenizer.image_token_id),
        "text_config.pad_token_id": (text.pad_token_id, tokenizer.pad_token_id),
        "vision_config.num_image_tokens": (
            config.vision_config.num_image_tokens,
            codes[0] * codes[1],
        ),
    }
    wrong = [f"{key} is {is_}, expected {want}" for key, (is_, want) in expected.items()
             if is_ != want]  # fmt: skip
    channels = 3 * parts.settings.pixel_shuffle**2
    if config.vq_config.in_channels != channels or config.vq_config.out_channels != channels:
        wrong.append(f"vq_config has other channels than the {channels} of pixel_shuffle")
    if len(tokenizer) > text.vocab_size:
        wrong.append(f"{len(tokenizer)} tokens for a vocabulary of {text.vocab_size}")
    if wrong:
        raise BackboneError(f"{parts.source}: the checkpoint's files disagree: {wrong[0]}")


@dataclass(frozen=True)
class SquarePicture:
    """PIL image -> (3, size, size): the longer side scaled, the rest filled; as Janus' processor.

    Attributes:
        size: Side in pixels.
        min_size: Least length of the shorter side before filling.
        resample: Pillow's number of the filter.
        mean: Of each channel, in [0, 1].
        std: Likewise.
    """

    size: int
    min_size: int
    resample: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, picture: Any) -> Tensor:
        """Preprocess one image."""
        picture = picture.convert("RGB")
        scale = self.size / max(picture.size)
        width, height = (max(round(side * scale), self.min_size) for side in picture.size)
        if (width, height) != picture.size:
            picture = picture.resize((width, height), Image.Resampling(self.resample))
        if width != height:
            fill = tuple(int(value * 255) for value in self.mean)
            canvas = Image.new("RGB", (max(width, height),) * 2, fill)
            canvas.paste(picture, ((canvas.width - width) // 2, (canvas.height - height) // 2))
            picture = canvas
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std

    def to_signed(self, pixels: Tensor) -> Tensor:
        """Preprocessed images -> [-1, 1], which the pixel tokenizer takes."""
        if set(self.mean) == set(self.std) == {0.5}:
            return pixels
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels * std + mean) * 2 - 1


def preprocess_of(parts: JanusParts) -> tuple[SquarePicture, dict[str, Any]]:
    """Turn the image processor's values into a function, and list the values.

    Raises:
        BackboneError: A value is missing, unknown, or not the size of the vision tower.
    """
    given = parts.image_processor
    size, resample = given.get("size", {}), given.get("resample", 3)
    side = parts.model.config.vision_config.image_size
    problems = {
        f"size must be {side} x {side}, got {size}": size != {"height": side, "width": side},
        f"resample {resample!r} is not known": resample not in _RESAMPLING,
        "image_mean and image_std are needed": not {"image_mean", "image_std"} <= set(given),
        "do_pad is off": given.get("do_pad", True) is False,
    }
    problem = "; ".join(text for text, is_so in problems.items() if is_so)
    if problem:
        raise BackboneError(
            f"{parts.source}/{PREPROCESSOR}: {problem}; a default would silently feed the tower "
            "wrong pixels"
        )
    picture = SquarePicture(
        side, int(given.get("min_size", 14)), int(resample),
        tuple(given["image_mean"]), tuple(given["image_std"]),
    )  # fmt: skip
    return picture, {"resize_mode": "longest", **to_mapping(picture)}


def fingerprint_of(parts: JanusParts) -> str:
    """Hash architecture, weights and settings, as they are now."""
    values = settings_of(parts.model.config, ("vision_config", "text_config", "vq_config"))
    return hash_model({**values, "settings": to_mapping(parts.settings)}, parts.model)
