import numpy as np
import torch

from vltune_lab.pretrain.picture_grid import grid


def test_a_grid_shows_every_image_in_reading_order() -> None:
    """Three images of 2 x 1 pixels in two columns, the last place white, enlarged twice."""
    images = torch.tensor([0.0, 0.2, 0.4])[:, None, None, None].expand(3, 3, 2, 1)
    picture = grid(images, columns=2)
    assert picture.shape == (8, 4, 3)
    assert np.array_equal(picture[::4, ::2, 0], [[0, 51], [102, 255]])
    assert np.array_equal(picture[0:4, 0:2], np.zeros((4, 2, 3)))
