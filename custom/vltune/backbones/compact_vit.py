"""The image trunk of clip-compact: a small ViT behind a convolutional stem.

Three 3x3 convolutions of stride 2 replace the usual 8x8 patch projection: at 64 pixels a linear
patch embedding learns edges far too slowly. The trunk is registered with timm, so that open_clip
builds it from a JSON file like any other timm tower.

Average pooling needs no class token, and the final norm is applied to every patch token *before*
pooling. The projection is linear and has no bias, so projecting the pooled token equals pooling the
projected tokens: the patch tokens live in the joint image-text space.
"""

from collections.abc import Callable
from typing import Any

import timm
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

IMAGE_SIZE = 64
STRIDE = 8
EMBED_DIM = 128
DEPTH = 4
NUM_HEADS = 4
STEM_CHANNELS = (32, 64, 128)


class ConvStem(nn.Module):
    """Image -> patch tokens of stride 8, in the place of timm's patch embedding.

    The keyword arguments are those with which timm's VisionTransformer builds its ``embed_layer``.
    """

    def __init__(
        self,
        img_size: int = IMAGE_SIZE,
        patch_size: int = STRIDE,
        in_chans: int = 3,
        embed_dim: int = EMBED_DIM,
        bias: bool = True,
        **timm_options: Any,
    ) -> None:
        super().__init__()
        if patch_size != STRIDE or img_size % STRIDE:
            raise ValueError(
                f"the convolutional stem has stride {STRIDE}: patch_size must be {STRIDE} and the "
                f"image size a multiple of it, got patch_size={patch_size}, img_size={img_size}"
            )
        tensor_options: dict[str, Any] = {key: timm_options.get(key) for key in ("device", "dtype")}
        side = img_size // STRIDE
        self.img_size = (img_size, img_size)
        self.patch_size = (STRIDE, STRIDE)
        self.grid_size = (side, side)
        self.num_patches = side * side
        layers: list[nn.Module] = []
        for width in STEM_CHANNELS:
            layers += [
                nn.Conv2d(in_chans, width, 3, stride=2, padding=1, bias=False, **tensor_options),
                nn.BatchNorm2d(width, **tensor_options),
                nn.GELU(),
            ]
            in_chans = width
        self.convolutions = nn.Sequential(*layers)
        self.proj = nn.Conv2d(in_chans, embed_dim, 1, bias=bias, **tensor_options)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> tokens (B, M, width); raises ValueError on another image size."""
        if tuple(images.shape[-2:]) != self.img_size:
            raise ValueError(
                f"image size {tuple(images.shape[-2:])} differs from the trunk's {self.img_size}"
            )
        features: Tensor = self.proj(self.convolutions(images))  # (B, width, H/8, W/8)
        return features.flatten(2).transpose(1, 2)


def vltune_convstem_vit_p8(
    pretrained: bool = False,
    num_classes: int = 0,
    global_pool: str = "avg",
    patch_drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    **kwargs: Any,
) -> VisionTransformer:
    """Build the trunk; timm calls this by its name.

    Raises:
        ValueError: pretrained is asked for; open_clip loads the weights of the whole model instead.
    """
    if pretrained:
        raise ValueError("vltune_convstem_vit_p8 has no weights of its own; load the whole CLIP")
    unknown = set(kwargs) - {"pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
    if unknown:
        raise ValueError(f"vltune_convstem_vit_p8 does not take {sorted(unknown)}")
    model = VisionTransformer(
        img_size=IMAGE_SIZE,
        patch_size=STRIDE,
        embed_dim=EMBED_DIM,
        depth=DEPTH,
        num_heads=NUM_HEADS,
        num_classes=num_classes,
        global_pool=global_pool,
        class_token=False,
        # timm would otherwise move the norm behind the average pooling.
        fc_norm=False,
        patch_drop_rate=patch_drop_rate,
        drop_path_rate=drop_path_rate,
        embed_layer=ConvStem,
    )
    model.default_cfg = {"input_size": (3, IMAGE_SIZE, IMAGE_SIZE), "num_classes": num_classes}
    return model


_TRUNKS: tuple[Callable[..., nn.Module], ...] = (vltune_convstem_vit_p8,)


def register_compact_towers() -> None:
    """Make our trunks known to timm; may be called any number of times."""
    for trunk in _TRUNKS:
        if not timm.is_model(trunk.__name__):
            register_model(trunk)
