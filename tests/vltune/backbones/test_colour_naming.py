"""Colours of boxes."""

import pytest
import torch

from vltune.backbones.clip import ClipBackbone
from vltune.backbones.colour_naming import PALETTE, ClipColour, NearestColour, lab_of
from vltune.geneval_prompts import COLORS


def test_lab_of_known_colours() -> None:
    """Published values of the sRGB primaries under D65, to one place."""
    colours = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    expected = torch.tensor([[100, 0, 0], [0, 0, 0], [53.2, 80.1, 67.2], [32.3, 79.2, -107.9]])
    torch.testing.assert_close(lab_of(colours), expected, atol=0.15, rtol=0)


@pytest.mark.parametrize("name", COLORS)
def test_the_middle_of_the_box_decides(name: str) -> None:
    """A box of 20 x 10 in an image of another colour: its outer fifths show the background."""
    other = "white" if name != "white" else "black"
    image = (torch.tensor(PALETTE[other][0]) / 255)[:, None, None].repeat(1, 30, 40)
    image[:, 7:13, 9:21] = (torch.tensor(PALETTE[name][0]) / 255)[:, None, None]
    assert NearestColour().name(image, [(5, 5, 25, 15), (30, 20, 40, 30)], ["dog"] * 2) == [
        name,
        other,
    ]


def test_boxes_at_the_edge_and_without_extent() -> None:
    image = torch.zeros(3, 8, 8)
    boxes = [(7.9, 7.9, 8.0, 8.0), (-2.0, 3.0, 0.5, 3.0), (8.0, 8.0, 8.0, 8.0)]
    assert NearestColour().name(image, boxes, ["dog"] * 3) == ["black"] * 3


def test_clip_chooses_by_the_mean_of_its_sentences(tiny_clip: ClipBackbone) -> None:
    image = torch.rand(3, 30, 40, generator=torch.Generator().manual_seed(0))
    namer = ClipColour(tiny_clip)
    box, name = (4.0, 3.0, 20.0, 25.0), "dog"
    (found,) = namer.name(image, [box], [name])
    from PIL import Image

    pixels = (image[:, 3:25, 4:20] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    feature = tiny_clip.encode_images(
        tiny_clip.preprocess(Image.fromarray(pixels))[None]
    ).image_features[0]
    scores = []
    for color in COLORS:
        texts = [f"a photo of a {color} dog", f"a photo of a {color}-colored dog"]
        mean = tiny_clip.encode_texts([*texts, f"a photo of a {color} object"]).mean(dim=0)
        scores.append(float(mean / mean.norm() @ feature))
    assert found == COLORS[scores.index(max(scores))]
    assert namer.name(image, [], []) == []
