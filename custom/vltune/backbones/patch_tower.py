"""A frozen vision tower that gives patch tokens, built by configuration and never downloaded.

Unlike `patch_features`, nothing is projected into the joint space: the tokens hold what the tower
knows of a patch, which is more than what its text tower has words for.
"""

from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vltune.backbones.blip3o_config import TowerSettings
from vltune.backbones.checkpoint import BackboneError
from vltune.backbones.compact_vit import register_compact_towers


class PatchTower(nn.Module):
    """Images -> patch tokens after the tower's last norm, without class tokens.

    Args:
        settings: Which tower.

    Raises:
        BackboneError: It cannot be built, or gives tokens of another number or width.
    """

    def __init__(self, settings: TowerSettings) -> None:
        super().__init__()
        self.settings = settings
        try:
            self.tower, self.num_prefix = _build(settings)
        except (TypeError, ValueError, RuntimeError, KeyError) as error:
            raise BackboneError(f"vision: the tower cannot be built: {error!r}") from error

    def forward(self, pixels: Tensor) -> Tensor:
        """Preprocessed images (B, 3, H, W) -> tokens (B, M, D).

        Raises:
            ValueError: The images have another size (both are printed).
            BackboneError: The tower's tokens are not those of its settings.
        """
        s = self.settings
        expected = (3, s.image_size, s.image_size)
        if tuple(pixels.shape[1:]) != expected:
            raise ValueError(f"images: expected (B, *{expected}), got {tuple(pixels.shape)}")
        tower: Any = self.tower
        if s.kind == "timm":
            tokens = tower.forward_features(pixels)
        else:
            tokens = tower(pixel_values=pixels).last_hidden_state
            tokens = tower.post_layernorm(tokens) if s.kind == "clip" else tokens
        tokens = tokens[:, self.num_prefix :]
        side = s.side * s.pool
        if tuple(tokens.shape[1:]) != (side * side, s.width):
            raise BackboneError(
                f"vision: the tower gives {tuple(tokens.shape[1:])} tokens, its settings say "
                f"{(side * side, s.width)} before pooling"
            )
        return pool_tokens(tokens, s.pool)


def pool_tokens(tokens: Tensor, pool: int) -> Tensor:
    """Average the tokens (B, M, D) of a square grid in squares of pool x pool."""
    if pool == 1:
        return tokens
    side = round(tokens.shape[1] ** 0.5)
    grid = tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)
    return F.avg_pool2d(grid, pool).flatten(2).transpose(1, 2)


def _build(settings: TowerSettings) -> tuple[nn.Module, int]:
    """The tower and how many tokens come before its patches."""
    values = dict(settings.settings)
    if settings.kind == "timm":
        register_compact_towers()
        tower: Any = timm.create_model(
            values.pop("name"), pretrained=False, num_classes=0, **values
        )
        return tower, int(getattr(tower, "num_prefix_tokens", 0))
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModel,
        SiglipVisionConfig,
        SiglipVisionModel,
    )

    values["image_size"] = settings.image_size
    if settings.kind == "clip":
        clip: Any = CLIPVisionModel(CLIPVisionConfig(**values))
        return getattr(clip, "vision_model", clip), 1
    siglip: Any = SiglipVisionModel(SiglipVisionConfig(**values, vision_use_head=False))
    return getattr(siglip, "vision_model", siglip), 0


def freeze(module: nn.Module) -> None:
    """Eval mode and no gradients, for good: batch norms keep their statistics too."""
    module.eval().requires_grad_(False)


@torch.no_grad()
def standard_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) of features (..., D) by channel; std is at least 1e-4."""
    flat = features.flatten(0, -2).double()
    return flat.mean(dim=0).float(), flat.std(dim=0).clamp_min(1e-4).float()
