"""Drawn backgrounds for the scene types of which no photograph was found; numpy only."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Rgb = tuple[float, float, float]
Pixels = NDArray[np.float32]


def procedural_background(scene: str, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a background.

    Args:
        scene: Scene type; one that has no drawing of its own gets an indoor wall and floor.
        size: Side in pixels.
        rng: The image's own stream.

    Returns:
        (size, size, 3), uint8.
    """
    painter = PAINTERS.get(scene, _indoor)
    canvas = painter(size, rng)
    canvas += rng.normal(0, 3, (size, size, 1)).astype(np.float32)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _tint(colour: Rgb, rng: np.random.Generator, spread: float = 22) -> Pixels:
    return np.array(colour, dtype=np.float32) + rng.uniform(-spread, spread, 3).astype(np.float32)


def _gradient(size: int, top: Pixels, bottom: Pixels) -> Pixels:
    share = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    return np.broadcast_to(top * (1 - share) + bottom * share, (size, size, 3)).copy()


def _horizon(
    size: int, rng: np.random.Generator, sky: tuple[Rgb, Rgb], ground: tuple[Rgb, Rgb]
) -> Pixels:
    line = int(size * rng.uniform(0.35, 0.65))
    canvas = np.empty((size, size, 3), dtype=np.float32)
    upper = _gradient(size, _tint(sky[0], rng), _tint(sky[1], rng))
    lower = _gradient(size, _tint(ground[0], rng), _tint(ground[1], rng))
    canvas[:line], canvas[line:] = upper[:line], lower[line:]
    return canvas


def _beach(size: int, rng: np.random.Generator) -> Pixels:
    canvas = _horizon(
        size, rng, ((120, 180, 235), (190, 220, 240)), ((60, 150, 190), (90, 180, 200))
    )
    shore = int(size * rng.uniform(0.6, 0.8))
    canvas[shore:] = _tint((225, 205, 150), rng)
    return canvas


def _snow(size: int, rng: np.random.Generator) -> Pixels:
    return _horizon(
        size, rng, ((150, 180, 215), (215, 225, 235)), ((235, 240, 245), (215, 225, 238))
    )


def _sky(size: int, rng: np.random.Generator) -> Pixels:
    return _gradient(size, _tint((70, 130, 215), rng), _tint((185, 215, 240), rng))


def _tiles(size: int, rng: np.random.Generator, wall: Rgb, grout: float) -> Pixels:
    canvas = _gradient(size, _tint(wall, rng), _tint(wall, rng))
    step = int(rng.integers(max(4, size // 10), max(5, size // 5)))
    canvas[int(rng.integers(step)) :: step] *= grout
    canvas[:, int(rng.integers(step)) :: step] *= grout
    return canvas


def _kitchen(size: int, rng: np.random.Generator) -> Pixels:
    canvas = _tiles(size, rng, (225, 210, 185), 0.88)
    counter = int(size * rng.uniform(0.55, 0.75))
    canvas[counter:] = _tint((120, 85, 60), rng, 35)
    canvas[counter : counter + max(1, size // 24)] = _tint((200, 200, 200), rng)
    return canvas


def _bathroom(size: int, rng: np.random.Generator) -> Pixels:
    canvas = _tiles(size, rng, (170, 210, 220), 0.82)
    floor = int(size * rng.uniform(0.65, 0.85))
    canvas[floor:] = _tint((150, 160, 165), rng)
    return canvas


def _office(size: int, rng: np.random.Generator) -> Pixels:
    canvas = _indoor(size, rng)
    step = max(3, size // 9)
    canvas[: size // 2, ::step] *= 0.9
    return canvas


def _indoor(size: int, rng: np.random.Generator) -> Pixels:
    canvas = _gradient(size, _tint((205, 195, 180), rng, 45), _tint((190, 180, 165), rng, 45))
    floor = int(size * rng.uniform(0.55, 0.8))
    canvas[floor:] = _tint((135, 100, 70), rng, 40)
    plank = max(3, size // 12)
    canvas[floor::plank] *= 0.92
    return canvas


PAINTERS: dict[str, Callable[[int, np.random.Generator], Pixels]] = {
    "beach": _beach,
    "snow": _snow,
    "sky": _sky,
    "kitchen": _kitchen,
    "bathroom": _bathroom,
    "office": _office,
}
