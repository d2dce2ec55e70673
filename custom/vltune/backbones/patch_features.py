"""Patch tokens in the joint image-text space, for each kind of image tower of open_clip."""

from collections.abc import Callable

import open_clip.timm_model
import open_clip.transformer
from timm.layers import AttentionPoolLatent
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

from vltune.backbones.checkpoint import BackboneError

# Images (B, 3, H, W) -> patch features (B, M, D) and image features (B, D), not normalised.
PatchReader = Callable[[Tensor], tuple[Tensor, Tensor]]


def patch_reader(visual: nn.Module) -> tuple[PatchReader, tuple[int, int]]:
    """Return the function that reads a tower's patches, and the grid (rows, columns) they form.

    A patch feature is what the tower would return if it pooled that one token: its final norm and
    its projection are applied to each token.

    Raises:
        BackboneError: The tower has no such patch tokens (ResNets, poolers with several queries).
    """
    if isinstance(visual, open_clip.transformer.VisionTransformer):
        return _read_open_clip(visual)
    if isinstance(visual, open_clip.timm_model.TimmModel):
        return _read_timm(visual)
    raise _unsupported(visual, "it is no vision transformer")


def _unsupported(tower: nn.Module, reason: str) -> BackboneError:
    return BackboneError(
        f"unsupported image tower {type(tower).__name__}: {reason}, so it has no patch features in "
        "the joint space. Use a ViT such as ViT-B-16."
    )


def _read_open_clip(
    visual: open_clip.transformer.VisionTransformer,
) -> tuple[PatchReader, tuple[int, int]]:
    if visual.attn_pool is not None or visual.pool_type not in ("tok", "avg"):
        raise _unsupported(visual, "it pools by attention or not at all")
    if visual.proj is None:
        raise _unsupported(visual, "it has no projection")

    def read(images: Tensor) -> tuple[Tensor, Tensor]:
        # normalize_intermediates applies ln_post; the projection is ours to apply.
        output = visual.forward_intermediates(
            images, indices=1, normalize_intermediates=True, output_fmt="NLC"
        )
        return output["image_intermediates"][0] @ visual.proj, output["image_features"]

    rows, columns = visual.grid_size
    return read, (int(rows), int(columns))


def _read_timm(visual: open_clip.timm_model.TimmModel) -> tuple[PatchReader, tuple[int, int]]:
    trunk = visual.trunk
    if not isinstance(trunk, TimmVisionTransformer):
        raise _unsupported(trunk, "it is no timm VisionTransformer")
    pooler = trunk.attn_pool
    is_latent = isinstance(pooler, AttentionPoolLatent) and pooler.pos_embed is None
    if pooler is not None and not is_latent:
        raise _unsupported(trunk, f"it pools with {type(pooler).__name__}")
    if trunk.global_pool not in ("avg", "token", "map"):
        raise _unsupported(trunk, f"its pooling is {trunk.global_pool!r}")
    if tuple(trunk.patch_embed.img_size) != tuple(visual.image_size):
        raise BackboneError(
            f"vision_cfg: image_size is {tuple(visual.image_size)}, but the timm trunk is built "
            f"for {tuple(trunk.patch_embed.img_size)}. Correct image_size."
        )

    def read(images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = trunk.forward_features(images)
        patches = tokens[:, trunk.num_prefix_tokens :]
        if pooler is not None:
            # A latent that attends to one token returns that token's value, projected.
            batch, num_patches, width = patches.shape
            patches = pooler(patches.reshape(batch * num_patches, 1, width))
            patches = patches.reshape(batch, num_patches, -1)
        patches = trunk.head(trunk.fc_norm(patches))
        return visual.head(patches), visual.head(trunk.forward_head(tokens))

    rows, columns = trunk.patch_embed.grid_size
    return read, (int(rows), int(columns))
