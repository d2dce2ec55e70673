"""Sprites of the asset pack: vendors' emoji drawings, one folder per style, one file per icon."""

import csv
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

LONGEST_SIDE = 112
"""Pixels of a sprite's longer side."""
RENDER_SIDE = 256
"""Pixels at which vector drawings are rendered before they are trimmed and reduced."""


class PackError(ValueError):
    """The pack cannot be made from what was given."""


@dataclass(frozen=True)
class SpriteSource:
    """One icon of one class.

    Attributes:
        classname: COCO name of the class.
        index: Number of the icon within its class, the same in every style.
        icon: Name of the icon.
        drawings: style -> name of the drawing in that style's package; absent where unusable.
    """

    classname: str
    index: int
    icon: str
    drawings: Mapping[str, str]


class Tarball:
    """An npm package as published."""

    def __init__(self, path: Path, package: str) -> None:
        if not path.is_file():
            raise PackError(
                f"{path}: not found. Fetch it with `npm pack` ({package}) into that folder."
            )
        self.path = path
        self.package = package

    @cached_property
    def _archive(self) -> tarfile.TarFile:
        try:
            return tarfile.open(self.path)
        except tarfile.TarError as error:
            raise PackError(
                f"{self.path}: cannot be read ({error}). Fetch {self.package} again."
            ) from error

    @cached_property
    def _members(self) -> dict[str, tarfile.TarInfo]:
        return {member.name: member for member in self._archive.getmembers()}

    def read(self, member: str) -> bytes:
        """Content of one member."""
        info = self._members.get(member)
        stream = self._archive.extractfile(info) if info is not None else None
        if stream is None:
            raise PackError(
                f"{self.path}: has no file {member}. Expected the package {self.package}."
            )
        return stream.read()

    @cached_property
    def icons(self) -> dict[str, Any]:
        """The icon collection (Iconify's JSON format) that the package holds."""
        collection: dict[str, Any] = json.loads(self.read("package/icons.json"))
        return collection

    def icon_name(self, name: str) -> str:
        """Key in `icons` of an icon given by its name, an alias or a code point (U+...)."""
        if name.startswith("U+"):
            point = name.removeprefix("U+").lower()
            points: dict[str, str] = json.loads(self.read("package/chars.json"))
            name = points.get(point) or points.get(f"{point}-fe0f") or name
        alias = self.icons.get("aliases", {}).get(name)
        return name if name in self.icons["icons"] or alias is None else str(alias["parent"])


def read_sprite_sources(path: Path, styles: Sequence[str]) -> list[SpriteSource]:
    """Read the table of classes and icons (columns class, index, icon, then one per style)."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [
        SpriteSource(
            row["class"],
            int(row["index"]),
            row["icon"],
            {style: row[style] for style in styles if row.get(style)},
        )
        for row in rows
    ]


def pack_sprites(
    out: Path,
    styles: Mapping[str, Mapping[str, str]],
    sources: Sequence[SpriteSource],
    open_tarball: Callable[[Mapping[str, str]], Tarball],
) -> dict[str, Any]:
    """Write every sprite under `out`/<style>/ and return the manifest.

    Args:
        out: Folder of the sprites.
        styles: style -> its entry in sources.json.
        sources: What to draw.
        open_tarball: From an entry of sources.json to the package.
    """
    packed: dict[str, Any] = {}
    for style, entry in styles.items():
        tarball = open_tarball(entry)
        (out / style).mkdir(parents=True, exist_ok=True)
        sprites = [
            _write_sprite(
                out, style, source, read_drawing(tarball, entry["member"], source.drawings[style])
            )
            for source in sources
            if style in source.drawings
        ]
        packed[style] = {"sprites": sprites}
    classes = list(dict.fromkeys(source.classname for source in sources))
    return {"version": 1, "classes": classes, "styles": packed}


def read_drawing(tarball: Tarball, member: str, name: str) -> Image.Image:
    """One drawing as RGBA at its native size (raster) or `RENDER_SIDE` (vector)."""
    if member.endswith("icons.json"):
        return render_svg(_iconify_svg(tarball, name))
    content = tarball.read(member.format(icon=name))
    if name.endswith(".svg"):
        return render_svg(content.decode("utf-8"))
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGBA")


def _iconify_svg(tarball: Tarball, name: str) -> str:
    collection = tarball.icons
    name = tarball.icon_name(name)
    if name not in collection["icons"]:
        raise PackError(
            f"{tarball.path}: has no icon {name!r}. Expected the package {tarball.package}."
        )
    icon = collection["icons"][name]
    box = [icon.get("left", 0), icon.get("top", 0)]
    box += [icon.get(key, collection.get(key, 16)) for key in ("width", "height")]
    view = " ".join(str(value) for value in box)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{view}" width="{box[2]}" height="{box[3]}">{icon["body"]}</svg>'
    )


def render_svg(svg: str) -> Image.Image:
    """Rasterise an SVG text at a width of `RENDER_SIDE` pixels, RGBA."""
    try:
        import resvg_py  # only the maintainer's script needs it
    except ImportError as error:
        raise PackError("drawing vectors needs the wheel: pip install resvg-py") from error
    png = resvg_py.svg_to_bytes(svg_string=svg, width=RENDER_SIDE, skip_system_fonts=True)
    with Image.open(io.BytesIO(bytes(png))) as image:
        return image.convert("RGBA")


def trim_and_fit(image: Image.Image) -> Image.Image:
    """Cut away the transparent border and scale so that the longer side is `LONGEST_SIDE`."""
    box = image.getchannel("A").getbbox()
    if box is None:
        raise PackError("a drawing is entirely transparent; take it out of sprite_sources.csv")
    cut = image.crop(box)
    scale = LONGEST_SIDE / max(cut.size)
    size = (max(1, round(cut.width * scale)), max(1, round(cut.height * scale)))
    return cut.resize(size, Image.Resampling.LANCZOS)


def _write_sprite(
    out: Path, style: str, source: SpriteSource, drawing: Image.Image
) -> dict[str, Any]:
    sprite = trim_and_fit(drawing)
    buffer = io.BytesIO()
    sprite.save(buffer, "WEBP", quality=90)
    slug = source.classname.replace(" ", "-")
    file = f"{style}/{slug}_{source.index}.webp"
    (out / file).write_bytes(buffer.getvalue())
    return {
        "class": source.classname,
        "file": file,
        "index": source.index,
        "icon": source.drawings[style],
        "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
    }
