"""From vision features to pixels, in one pass.

BLIP3-o (arXiv 2505.09568, section 3) decodes features by a diffusion model of SDXL's size.
Deviation: a convolutional regression; at 64 pixels a grid of 8 x 8 features leaves little to
invent, and an image costs milliseconds.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from vltune.backbones.blip3o_config import DecoderSettings

_GROUPS = 8


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(_GROUPS, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(_GROUPS, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> the same shape."""
        out: Tensor = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return x + out


class FeatureDecoder(nn.Module):
    """Standardised features -> images.

    Args:
        settings: Channels and blocks.
        feature_width: Width D of a feature.
    """

    def __init__(self, settings: DecoderSettings, feature_width: int) -> None:
        super().__init__()
        first, *others = settings.channels
        layers: list[nn.Module] = [nn.Conv2d(feature_width, first, 3, padding=1)]
        layers += [ResidualBlock(first) for _ in range(settings.blocks)]
        before = first
        for channels in others:
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(before, channels, 3, padding=1)]
            layers += [ResidualBlock(channels) for _ in range(settings.blocks)]
            before = channels
        layers += [nn.GroupNorm(_GROUPS, before), nn.SiLU()]
        layers += [nn.Conv2d(before, 3 * settings.shuffle**2, 3, padding=1)]
        layers += [nn.PixelShuffle(settings.shuffle)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, T, D) of a square grid, row by row -> images (B, 3, H, W) in [0, 1]."""
        side = round(features.shape[1] ** 0.5)
        grid = features.transpose(1, 2).reshape(len(features), -1, side, side)
        images: Tensor = self.layers(grid)
        return images.sigmoid()
