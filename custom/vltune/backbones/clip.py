"""Load a frozen CLIP: the same path for a real open_clip checkpoint and for clip-compact.

    backbone = load_clip(BackboneConfig("ViT-B-16", "/models/vit_b_16.safetensors"))

Works offline. A missing, wrong or mismatching checkpoint is a `BackboneError`.
"""

import functools
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from torch import Tensor, nn
from torch.nn import functional as F

from vltune.backbones.checkpoint import (
    BackboneConfig,
    BackboneError,
    Checkpoint,
    canonical_architecture,
    locate,
)
from vltune.backbones.compact_vit import register_compact_towers
from vltune.backbones.devices import place_images
from vltune.backbones.patch_features import PatchReader, patch_reader
from vltune.backbones.precision import fast_bfloat16
from vltune.backbones.text_tower import TextTower
from vltune.backbones.weights import load_strictly, read_state
from vltune.files import sha256_json

__all__ = ["BackboneConfig", "BackboneError", "ClipBackbone", "ImageFeatures", "load_clip"]

logger = logging.getLogger(__name__)

_TEXT_BATCH = 256


class ImageFeatures(NamedTuple):
    """Frozen features of some images, fp32.

    Attributes:
        patch_features: (B, M, D), unit norm, in the joint space.
        image_features: (B, D), unit norm.
    """

    patch_features: Tensor
    image_features: Tensor


@dataclass(frozen=True, eq=False)
class ClipBackbone:
    """A frozen CLIP.

    Attributes:
        name: The job's name of the model.
        model: open_clip's model in eval mode; no parameter asks for a gradient.
        preprocess: PIL image -> (3, H, W), as the checkpoint was trained.
        tokenizer: The checkpoint's tokenizer.
        text_tower: Its text tower at the level of token embeddings.
        embed_dim: Width D of the joint space.
        logit_scale: Trained factor of cosine similarities.
        logit_bias: Trained offset of logits; 0 except for SigLIP.
        image_size: (H, W) in pixels.
        patch_grid: (rows, columns) of the patches.
        fingerprint: Hex SHA-256 of architecture and weights (as fp32).
        preprocess_fingerprint: Hex SHA-256 of the preprocessing values.
        use_bfloat16: The image tower runs in bf16.
    """

    name: str
    model: nn.Module = field(repr=False)
    preprocess: Callable[[Any], Tensor]
    tokenizer: Any
    text_tower: TextTower
    embed_dim: int
    logit_scale: float
    logit_bias: float
    image_size: tuple[int, int]
    patch_grid: tuple[int, int]
    fingerprint: str
    preprocess_fingerprint: str
    use_bfloat16: bool
    _read_patches: PatchReader = field(repr=False)

    @property
    def num_patches(self) -> int:
        """Patches M of an image."""
        return self.patch_grid[0] * self.patch_grid[1]

    @property
    def token_width(self) -> int:
        """Width W of the text tower's tokens."""
        return self.text_tower.width

    @property
    def is_causal_text(self) -> bool:
        """Whether no text token sees a later one, so that prompts can share their prefix."""
        return self.text_tower.is_causal

    @property
    def device(self) -> torch.device:
        """Where the towers run."""
        return self.text_tower.device

    @property
    def precision(self) -> str:
        """Arithmetic of the image tower: ``bf16`` or ``fp32``."""
        return "bf16" if self.use_bfloat16 else "fp32"

    @functools.cached_property
    def tokenizer_fingerprint(self) -> str:
        """Hex SHA-256 of the vocabulary: equal sizes do not mean equal ids."""
        inner = getattr(self.tokenizer, "tokenizer", None)
        vocabulary = self.tokenizer.encoder if inner is None else inner.get_vocab()
        return sha256_json(vocabulary)

    def encode_images(self, images: Tensor) -> ImageFeatures:
        """Encode preprocessed images (B, 3, H, W) without gradients.

        Raises:
            ValueError: The images have another shape (both are printed).
        """
        placed = place_images(images, self.image_size, self.device)
        kind = self.device.type
        with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=self.use_bfloat16):
            patches, pooled = self._read_patches(placed)
        return ImageFeatures(_unit_norm(patches), _unit_norm(pooled))

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Encode whole texts without gradients -> (N, D), unit norm, fp32.

        Raises:
            ValueError: A text does not fit the context; open_clip would cut it silently.
        """
        tower = self.text_tower
        room = tower.context_length - len(tower.start_ids) - 1
        for text in texts:
            length = len(tower.word_ids(text))
            if length > room:
                raise ValueError(f"text of {length} tokens, {self.name} takes {room}: {text!r}")
        with torch.no_grad():
            features = [
                tower.encode_ids(self.tokenizer(list(texts[i : i + _TEXT_BATCH])))
                for i in range(0, len(texts), _TEXT_BATCH)
            ]
        if not features:
            return torch.zeros(0, self.embed_dim, device=self.device)
        return _unit_norm(torch.cat(features))


def _unit_norm(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1)


def load_clip(
    config: BackboneConfig, device: torch.device | str = "cpu", bfloat16: bool | None = None
) -> ClipBackbone:
    """Load the frozen model that `config` names. Uses no network unless `weights` is a tag.

    Args:
        config: Model, weights and optional hash.
        device: Where the towers will run.
        bfloat16: Run the image tower in bf16; None: where the hardware is fast at it.

    Raises:
        BackboneError: The checkpoint is missing, damaged, of another architecture, or of an
            architecture that has no patch features.
    """
    register_compact_towers()
    checkpoint = locate(config)
    model = _build(checkpoint)
    # What open_clip fetched by tag counts as known: it compares the hash that its own table has.
    is_known = bool(config.sha256) or not Path(config.weights).expanduser().exists()
    load_strictly(model, read_state(checkpoint.path, is_known=is_known), checkpoint.path)
    fingerprint = _fingerprint(model, checkpoint.model_cfg)
    model = model.eval().requires_grad_(False).to(device)
    visual: Any = model.visual
    read_patches, patch_grid = patch_reader(visual)
    tokenizer = _tokenizer(checkpoint)
    preprocess = _preprocess_values(checkpoint, visual)
    bias: Any = model.logit_bias
    logger.info("loaded %s from %s", config.model, checkpoint.path)
    return ClipBackbone(
        name=config.model,
        model=model,
        preprocess=image_transform_v2(PreprocessCfg(**preprocess), is_train=False),
        tokenizer=tokenizer,
        text_tower=TextTower(model, tokenizer),
        embed_dim=int(checkpoint.model_cfg["embed_dim"]),
        logit_scale=float(torch.as_tensor(model.logit_scale).exp()),
        logit_bias=0.0 if bias is None else float(bias),
        image_size=tuple(preprocess["size"]),
        patch_grid=patch_grid,
        fingerprint=fingerprint,
        preprocess_fingerprint=sha256_json(preprocess),
        use_bfloat16=fast_bfloat16(device) if bfloat16 is None else bfloat16,
        _read_patches=read_patches,
    )


def _build(checkpoint: Checkpoint) -> nn.Module:
    """Build the architecture without touching the network or the caller's random state."""
    canonical_architecture(checkpoint.model_cfg)
    arguments = dict(checkpoint.model_cfg)
    if "multimodal_cfg" in arguments or arguments["text_cfg"].get("hf_model_name"):
        raise BackboneError(
            f"{checkpoint.path}: unsupported model: prompts need a CLIP with open_clip's text tower"
        )
    is_custom = arguments.pop("custom_text", False)
    arguments["vision_cfg"] = {**arguments["vision_cfg"], "timm_model_pretrained": False}
    try:
        with torch.random.fork_rng(devices=[]):
            build = open_clip.CustomTextCLIP if is_custom else open_clip.CLIP
            model: nn.Module = build(**arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise BackboneError(f"{checkpoint.path}: the model cannot be built: {error}") from error
    return model


def _tokenizer(checkpoint: Checkpoint) -> Any:
    try:
        return open_clip.get_tokenizer(checkpoint.tokenizer)
    except (OSError, ImportError, RuntimeError, ValueError) as error:
        raise BackboneError(
            f"the tokenizer of {checkpoint.tokenizer} cannot be loaded ({error}). Without network "
            "give a folder that holds the tokenizer's files beside the weights."
        ) from error


def _preprocess_values(checkpoint: Checkpoint, visual: Any) -> dict[str, Any]:
    """Every preprocessing value in plain lists; the size must be the tower's."""
    size = [int(side) for side in visual.image_size]
    stated = checkpoint.preprocess.get("size", size)
    stated = [stated, stated] if isinstance(stated, int) else list(stated)
    if stated != size:
        raise BackboneError(
            f"{checkpoint.path}: preprocess_cfg.size is {stated}, the image tower takes {size}"
        )
    values = merge_preprocess_dict(PreprocessCfg(), {**checkpoint.preprocess, "size": size})
    return {key: list(item) if isinstance(item, tuple) else item for key, item in values.items()}


def _fingerprint(model: nn.Module, model_cfg: dict[str, Any]) -> str:
    """Hash architecture and weights; the same weights in either layout of open_clip hash equal."""
    digest = hashlib.sha256(sha256_json(canonical_architecture(model_cfg)).encode())
    state = {key.removeprefix("text."): tensor for key, tensor in model.state_dict().items()}
    for key in sorted(state):
        tensor = state[key].contiguous()
        digest.update(f"\0{key}{tuple(tensor.shape)}".encode())
        digest.update(memoryview(tensor.numpy()).cast("B"))
    return digest.hexdigest()
