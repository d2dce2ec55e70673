"""The pixel tokenizer of Janus: images -> codes -> images, with transformers' own class.

Its GroupNorms have 32 groups, a number that no configuration knows and no checkpoint holds. At 32
channels that is instance norm, which cannot render the level of a plain area; compact models have
fewer groups, written down in `janus_settings.JanusSettings` and set again after each load.

The class doubles and halves its maps with 3 x 3 convolutions, which is most of its cost and slow to
learn on a CPU. A compact model may instead see blocks of pixels as channels (`pixel_shuffle`): the
class's own code runs at the resolution of the codes, and pixels are rearranged before and after.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vltune.backbones.checkpoint import BackboneError

PUBLISHED_GROUPS = 32


def set_norm_groups(vq: nn.Module, groups: int) -> None:
    """Set the groups of every GroupNorm of a pixel tokenizer, in place.

    Raises:
        BackboneError: A layer's channels are no multiple of `groups`.
    """
    for name, module in vq.named_modules():
        if not isinstance(module, nn.GroupNorm):
            continue
        if module.num_channels % groups:
            raise BackboneError(
                f"norm_groups {groups} does not divide the {module.num_channels} channels of "
                f"{name}; give the number with which the model was trained"
            )
        module.num_groups = groups


def encode_codes(vq: Any, pixels: Tensor, shuffle: int = 1) -> Tensor:
    """Codes (B, T), int64, of images (B, 3, H, W) in [-1, 1]; row by row, without gradients."""
    with torch.no_grad():
        codes: Tensor = vq.encode(F.pixel_unshuffle(pixels, shuffle)).image_tokens
    return codes.view(len(pixels), -1)


def decode_codes(vq: Any, codes: Tensor, shuffle: int = 1) -> Tensor:
    """Images (B, 3, H, W), fp32 in [0, 1], of codes (B, T); without gradients."""
    with torch.no_grad():
        images = F.pixel_shuffle(vq.decode(codes), shuffle)
    return images.float().clamp(-1, 1).add(1).div(2)
