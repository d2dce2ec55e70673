"""The world's material: sprites by class and style, backgrounds by scene, from `assets/`."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PACKAGED_ASSETS = Path(__file__).resolve().parents[3] / "assets"
LEVELS = (112, 80, 56, 40, 28, 20)
"""Longest side of each mip level, pixels: a sprite is drawn from the level just above its size."""

PRETRAINING_STYLES = ("fluent3d", "fluentflat", "noto", "openmoji")
FEDERATION_STYLES = ("twemoji", "notov1", "emojione1")
SHIFTED_STYLES = ("fxemoji",)


class AssetError(ValueError):
    """The asset folder is incomplete or damaged; the message names the file and the cure."""


@dataclass(frozen=True)
class Sprite:
    """One drawing of one class.

    Attributes:
        classname: What it shows.
        style: Vendor's drawing style.
        index: The same icon has the same index in every style of the class.
        levels: Premultiplied RGBA images, longest sides `LEVELS`.
        mean_colour: Mean RGB of its opaque pixels, in [0, 255].
    """

    classname: str
    style: str
    index: int
    levels: tuple[Image.Image, ...]
    mean_colour: NDArray[np.float32]


@dataclass(frozen=True)
class Library:
    """All material.

    Attributes:
        classnames: In the order of the manifest.
        sprites: (style, class) -> drawings, sorted by index. Absent where a style lacks a class.
        backgrounds: scene -> panorama -> crops, uint8 (H, W, 3).
    """

    classnames: tuple[str, ...]
    sprites: dict[tuple[str, str], tuple[Sprite, ...]]
    backgrounds: dict[str, dict[str, tuple[Image.Image, ...]]]

    def classes_of(self, style: str) -> tuple[str, ...]:
        """Classes that `style` can draw, in manifest order."""
        return self._classes_by_style.get(style, ())

    @cached_property
    def _classes_by_style(self) -> dict[str, tuple[str, ...]]:
        return {
            style: tuple(name for name in self.classnames if (style, name) in self.sprites)
            for style in self.styles
        }

    @cached_property
    def styles(self) -> tuple[str, ...]:
        """Styles that have at least one sprite."""
        return tuple(sorted({style for style, _ in self.sprites}))


def load_library(
    assets: Path = PACKAGED_ASSETS, styles: tuple[str, ...] | None = None, *, verify: bool = True
) -> Library:
    """Load sprites and backgrounds.

    Args:
        assets: Folder with `sprites/manifest.json` and `backgrounds/manifest.json`.
        styles: Styles to load; None loads all.
        verify: Compare every file with its hash in the manifest.

    Raises:
        AssetError: A file is missing, damaged, or a wanted style is not there.
    """
    manifest = _read_manifest(assets / "sprites" / "manifest.json")
    wanted = tuple(manifest["styles"]) if styles is None else styles
    unknown = [style for style in wanted if style not in manifest["styles"]]
    if unknown:
        raise AssetError(
            f"styles {unknown} are not in {assets}/sprites/manifest.json; "
            f"it has {sorted(manifest['styles'])}"
        )
    sprites: dict[tuple[str, str], list[Sprite]] = {}
    for style in wanted:
        for entry in manifest["styles"][style]["sprites"]:
            image = _open(assets / "sprites" / entry["file"], entry["sha256"], verify=verify)
            sprite = _make_sprite(image.convert("RGBA"), entry["class"], style, entry["index"])
            sprites.setdefault((style, entry["class"]), []).append(sprite)
    return Library(
        classnames=tuple(manifest["classes"]),
        sprites={
            key: tuple(sorted(group, key=lambda s: s.index)) for key, group in sprites.items()
        },
        backgrounds=_load_backgrounds(assets, verify=verify),
    )


def _read_manifest(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AssetError(
            f"{path}: cannot be read ({error}). Take the folder assets/ of a full clone."
        ) from error


def _open(path: Path, sha256: str, *, verify: bool) -> Image.Image:
    try:
        if verify and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise AssetError(
                f"{path}: its content differs from the manifest. Restore it with git checkout."
            )
        with Image.open(path) as image:
            image.load()
            return image
    except OSError as error:
        raise AssetError(
            f"{path}: cannot be read ({error}). Restore it with git checkout."
        ) from error


def _make_sprite(image: Image.Image, classname: str, style: str, index: int) -> Sprite:
    pixels = np.asarray(image, dtype=np.float32)
    opaque = pixels[..., 3] > 128
    premultiplied = image.convert("RGBa")
    levels = []
    for longest in LEVELS:
        scale = longest / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        levels.append(
            premultiplied.resize(
                size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
            )
        )
    return Sprite(classname, style, index, tuple(levels), pixels[opaque][:, :3].mean(axis=0))


def _load_backgrounds(
    assets: Path, *, verify: bool
) -> dict[str, dict[str, tuple[Image.Image, ...]]]:
    manifest = _read_manifest(assets / "backgrounds" / "manifest.json")
    scenes: dict[str, dict[str, list[Image.Image]]] = {}
    for scene, entries in manifest["scenes"].items():
        for entry in entries:
            image = _open(assets / "backgrounds" / entry["file"], entry["sha256"], verify=verify)
            scenes.setdefault(scene, {}).setdefault(entry["panorama"], []).append(
                image.convert("RGB")
            )
    return {
        scene: {name: tuple(crops) for name, crops in sorted(panoramas.items())}
        for scene, panoramas in sorted(scenes.items())
    }
