"""Backgrounds of the asset pack: perspective views into HDR panoramas."""

import base64
import csv
import hashlib
import io
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from vltune_lab.scenes.sprite_pack import PackError, Tarball

CROP_SIDE = 128
"""Pixels of a view's side."""
MIDDLE_GREY = 0.18
"""Linear value that the log-average of a panorama is exposed to."""
EXPOSURE = 1.4
WHITE = 16.0
"""Linear value (after exposure) of the tone curve's second term; it lifts the highlights."""
GAMMA = 2.2
SUNNY = ("park", "sunrise")
"""Panoramas with a dark blue dot inside the sun, where the compression overflowed."""
SPECKLED = ("hall", "warehouse", "lobby", "studio")
"""Panoramas with isolated white pixels near lamps."""
SUN_ROW, SUN_ROWS = 115, 30
"""The sun stands within `SUN_ROWS` of this row of 256 in both sunny panoramas."""

Linear = NDArray[np.float32]
Pixels = NDArray[np.float64]


@dataclass(frozen=True)
class Crop:
    """One view.

    Attributes:
        scene: Scene type that it shows.
        panorama: Where it was taken.
        number: Of the view within scene and panorama.
        yaw: Of the view's axis, degrees; 0 is the middle of the panorama's left edge.
        pitch: Of the view's axis, degrees, upwards.
        fov: Horizontal field of view, degrees.
    """

    scene: str
    panorama: str
    number: int
    yaw: float
    pitch: float
    fov: float


def read_crops(path: Path) -> list[Crop]:
    """Read the table of views."""
    with path.open(encoding="utf-8", newline="") as stream:
        return [
            Crop(
                row["scene"], row["panorama"], int(row["number"]),
                float(row["yaw"]), float(row["pitch"]), float(row["fov"]),
            )
            for row in csv.DictReader(stream)
        ]  # fmt: skip


def pack_backgrounds(
    out: Path, crops: Sequence[Crop], tarball: Tarball, member: str
) -> dict[str, Any]:
    """Write every view under `out`/<scene>/ and return the manifest.

    Args:
        out: Folder of the backgrounds.
        crops: What to cut.
        tarball: Package of the panoramas.
        member: Path inside it, with `{panorama}`.
    """

    @cache
    def toned(name: str) -> Pixels:
        script = tarball.read(member.format(panorama=name)).decode("utf-8")
        return repair(tone_map(read_panorama(script, name)), name)

    scenes: dict[str, list[dict[str, str]]] = {}
    for crop in crops:
        view = cut_view(toned(crop.panorama), crop)
        file = f"{crop.scene.replace(' ', '-')}/{crop.panorama}_{crop.number}.webp"
        digest = _write_webp(out / file, view)
        entry = {"file": file, "panorama": crop.panorama, "sha256": digest}
        scenes.setdefault(crop.scene, []).append(entry)
    return {"version": 1, "scenes": scenes}


def read_panorama(script: str, name: str) -> Linear:
    """Linear RGB (H, W, 3) of an EXR file that a JavaScript module holds as a data URL."""
    try:
        import OpenEXR  # only the maintainer's script needs it
    except ImportError as error:
        raise PackError("reading panoramas needs the wheel: pip install OpenEXR") from error
    found = re.search(r"base64,([A-Za-z0-9+/=]+)", script)
    if found is None:
        raise PackError(f"panorama {name}: its module holds no base64 data. Check the package.")
    with tempfile.NamedTemporaryFile(suffix=".exr") as file:
        file.write(base64.b64decode(found.group(1)))
        file.flush()
        channels = OpenEXR.File(file.name).channels()
    whole = next((channels[key].pixels for key in ("RGB", "RGBA") if key in channels), None)
    if whole is None:
        whole = np.stack([channels[key].pixels for key in "RGB"], axis=-1)
    # Compression overflows to negative values beside very bright spots.
    return np.clip(np.asarray(whole[..., :3], dtype=np.float32), 0, None)


def tone_map(linear: Linear) -> Pixels:
    """Display values in [0, 1]: exposure to middle grey, a shoulder for the highlights, gamma."""
    log_mean = np.log(np.clip(linear.mean(-1), 1e-3, None)).mean()
    exposed = linear * (MIDDLE_GREY / np.exp(log_mean)) * EXPOSURE
    curve = exposed * (1 + exposed / WHITE) / (1 + exposed)
    return np.clip(curve, 0, 1) ** (1 / GAMMA)


def repair(toned: Pixels, name: str) -> Pixels:
    """Replace what the panorama's known defects spoilt; see `SUNNY` and `SPECKLED`."""
    if name not in SUNNY + SPECKLED:
        return toned
    image = Image.fromarray((toned * 255).astype(np.uint8))
    median = np.asarray(image.filter(ImageFilter.MedianFilter(9 if name in SUNNY else 3))) / 255.0
    differs = np.abs(median - toned).max(-1)
    if name in SPECKLED:
        return np.where((differs > 0.3)[..., None], median, toned)
    mended = np.where(_grown(differs > 0.35)[..., None], median, toned)
    red, blue = mended[..., 0], mended[..., 2]
    near_sun = np.abs(np.arange(len(mended))[:, None] - SUN_ROW) < SUN_ROWS
    return np.where(_grown((blue - red > 0.45) & (red < 0.25) & near_sun)[..., None], 1.0, mended)


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    image = Image.fromarray((mask * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.MaxFilter(5))) > 0


def cut_view(panorama: Pixels, crop: Crop, side: int = CROP_SIDE) -> Pixels:
    """Perspective view (side, side, 3) into an equirectangular image (H, W, 3), bilinear."""
    height, width, _ = panorama.shape
    plane = (np.arange(side) + 0.5) / side * 2 - 1
    x, y = np.meshgrid(plane, plane)
    rays = np.stack([x, -y, np.full_like(x, 1 / np.tan(np.radians(crop.fov) / 2))], -1)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    pitch = np.radians(crop.pitch)
    up = rays[..., 1] * np.cos(pitch) + rays[..., 2] * np.sin(pitch)
    ahead = -rays[..., 1] * np.sin(pitch) + rays[..., 2] * np.cos(pitch)
    longitude = np.arctan2(rays[..., 0], ahead) + np.radians(crop.yaw)
    column = (longitude / (2 * np.pi) % 1) * width
    row = (0.5 - np.arcsin(np.clip(up, -1, 1)) / np.pi) * height - 0.5
    left = np.floor(column).astype(int)
    top = np.clip(np.floor(row).astype(int), 0, height - 2)
    across, down = (column - left)[..., None], np.clip(row - top, 0, 1)[..., None]
    near, far = left % width, (left + 1) % width
    return (
        panorama[top, near] * (1 - across) * (1 - down)
        + panorama[top, far] * across * (1 - down)
        + panorama[top + 1, near] * (1 - across) * down
        + panorama[top + 1, far] * across * down
    )


def _write_webp(path: Path, view: Pixels) -> str:
    buffer = io.BytesIO()
    Image.fromarray((view * 255).astype(np.uint8)).save(buffer, "WEBP", quality=85)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()
