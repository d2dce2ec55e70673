"""Several pictures as one."""

import numpy as np
import torch
from torch import Tensor


def grid(images: Tensor, columns: int, scale: int = 2) -> np.ndarray:
    """Images (N, 3, H, W) in [0, 1] as one picture, uint8 (rows * H, columns * W, 3), enlarged."""
    missing = -len(images) % columns
    images = torch.cat([images, images.new_ones(missing, *images.shape[1:])])
    N, _, H, W = images.shape
    tiles = images.view(N // columns, columns, 3, H, W).permute(0, 3, 1, 4, 2)
    picture = (tiles.reshape(N // columns * H, columns * W, 3) * 255).round().byte().numpy()
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)
