"""What tells the vision tower of florence2-compact where things are.

Answers alone teach a small tower slowly: one word about an image says little of its pixels. The
scenes know every object's place, so linear heads on the tower's patches and on the image tokens are
trained beside the language model, and thrown away at the end.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from vltune_lab.pretrain.question_stream import Places
from vltune_lab.scenes.questions import COLOURS

RARE = -4.0
"""First bias of the sigmoids: a class is in one cell of fifty."""


class GroundingHead(nn.Module):
    """Linear readings of patches and image tokens; used in pre-training only.

    Args:
        patch_width: Channels of the fine patches.
        token_width: Width D of the image tokens.
        num_classes: Classes C.
        num_scenes: Scene types.
    """

    def __init__(
        self, patch_width: int, token_width: int, num_classes: int, num_scenes: int
    ) -> None:
        super().__init__()
        self.patches = nn.Sequential(
            nn.LayerNorm(patch_width), nn.Linear(patch_width, num_classes + 1)
        )
        self.covers = nn.Linear(token_width, num_classes)
        self.centres = nn.Linear(token_width, num_classes)
        self.colours = nn.Linear(token_width, len(COLOURS))
        self.scenes = nn.Linear(token_width, num_scenes)
        for layer in (self.covers, self.centres):
            nn.init.constant_(layer.bias, RARE)

    def forward(self, patches: Tensor, tokens: Tensor, places: Places) -> dict[str, Tensor]:
        """Losses by name.

        Args:
            patches: Feature map of the tower's last fine stage, (B, channels, 8, 8).
            tokens: Image tokens, the pooled one first, (B, 1 + M, D).
            places: The truth, on any device.
        """
        device = tokens.device
        pooled, cells = tokens[:, 0], tokens[:, 1:]
        logits = self.patches(patches.flatten(2).transpose(1, 2))  # (B, 64, C + 1)
        colours = places.colours.to(device)
        has_colour = (colours >= 0).any()
        colour_logits = self.colours(cells).flatten(0, 1)
        return {
            "patches": F.cross_entropy(logits.flatten(0, 1), places.patches.flatten().to(device)),
            "covers": _presence(self.covers(cells), places.covers.to(device)),
            "centres": _presence(self.centres(cells), places.centres.to(device)),
            "colours": F.cross_entropy(colour_logits, colours.flatten(), ignore_index=-1)
            if has_colour
            else colour_logits.sum() * 0,
            "scenes": F.cross_entropy(self.scenes(pooled), places.scenes.to(device)),
        }


def _presence(logits: Tensor, truth: Tensor) -> Tensor:
    """Sigmoid cross entropy, summed over classes, mean over cells."""
    losses = F.binary_cross_entropy_with_logits(logits, truth.to(logits), reduction="none")
    return losses.sum(dim=-1).mean()


def read_image(model: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The vision tower and projector with gradients.

    Args:
        model: transformers' Florence2ForConditionalGeneration.
        pixels: Preprocessed images, (B, 3, H, W).

    Returns:
        The feature map of the stage before the last, and the image tokens (B, 1 + M, D); the tokens
        are those of `Florence2Backbone.encode_images`.
    """
    tower = model.model.vision_tower
    hidden = pixels
    maps = []
    for conv, blocks in zip(tower.convs, tower.blocks, strict=True):
        hidden = conv(hidden)
        for block in blocks:
            hidden = block(hidden)
        maps.append(hidden)
    return maps[-2], model.model.multi_modal_projector(hidden)
