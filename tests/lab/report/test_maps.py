import io

import numpy as np
import pytest
from PIL import Image

from vltune_lab.report.maps import PIXELS, enlarged, heat, overlay, peak_ratio, picture_tag


def png(width: int, height: int, colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_heat_is_measured_against_an_even_share() -> None:
    # Six patches, an even share is 1/6: ratios 3, 1.2, 0.6, 0.6, 0.3, 0.3; the top is 3.
    mass = [[0.5, 0.2, 0.1], [0.1, 0.05, 0.05]]
    assert peak_ratio(mass) == pytest.approx(3.0)
    assert heat(mass) == pytest.approx(np.array([[1.0, 0.1, 0], [0, 0, 0]]))


def test_an_almost_even_map_stays_faint() -> None:
    # Ratios 1.1 and 0.9 of four patches: (1.1 - 1) / (2 - 1), not stretched to full colour.
    assert heat([[0.275, 0.225], [0.275, 0.225]]) == pytest.approx(np.array([[0.1, 0], [0.1, 0]]))


def test_the_overlay_colours_the_patch_and_leaves_the_rest_grey() -> None:
    # Mass on the left of two columns; the image is grey 100, dimmed to three quarters.
    with Image.open(io.BytesIO(overlay(png(60, 60, (100, 100, 100)), [[1.0, 0.0]]))) as picture:
        assert picture.size == (PIXELS, PIXELS)
        left, right = picture.getpixel((20, 80)), picture.getpixel((PIXELS - 20, 80))
    assert right == (75, 75, 75)
    assert left[0] > 200
    assert left[2] < 40


def test_the_shape_of_the_image_is_kept() -> None:
    with Image.open(io.BytesIO(enlarged(png(60, 30, (1, 2, 3))))) as picture:
        assert picture.size == (PIXELS, PIXELS // 2)
    assert 'src="data:image/png;base64,' in picture_tag(png(3, 3, (0, 0, 0)), "a <b>")
