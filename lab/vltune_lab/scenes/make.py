"""`vltune scenes make`: write a world as COCO instances JSON and JPEG images."""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from PIL import Image

from vltune.config import to_mapping
from vltune.files import (
    OutputError,
    atomic_path,
    sha256_json,
    write_bytes_atomic,
    write_json_atomic,
)
from vltune_lab.scenes.captions import caption
from vltune_lab.scenes.library import Library, load_library
from vltune_lab.scenes.plan import plan_scene, scene_rng
from vltune_lab.scenes.render import Scene, render_scene
from vltune_lab.scenes.world import Split, WorldConfig, check_world, splits_of

WORLD_VERSION = 2
"""Counts up when the same configuration would give other bytes."""
MARKER = "world.json"
"""Written last: it says that the world is whole."""


@dataclass(frozen=True)
class MadeWorld:
    """What was written.

    Attributes:
        folder: Holds world.json, one folder per site with vltune_site.yaml, and global/.
        num_images: Images in all.
        was_there: True where the same world had been written before and nothing was done.
    """

    folder: Path
    num_images: int
    was_there: bool


def make_world(
    config: WorldConfig, folder: Path, *, progress: Callable[[int, int], None] | None = None
) -> MadeWorld:
    """Write all splits of a world; the same configuration gives the same bytes.

    Args:
        config: The world.
        folder: Output; an earlier world of the same configuration is kept, another one is refused.
        progress: Called with (images written, images in all).

    Raises:
        OutputError: `folder` is a file, holds another world or something else, or cannot be
            written.
    """
    identity = {"world_version": WORLD_VERSION, "config": to_mapping(config)}
    total = sum(split.num_images for group in splits_of(config).values() for split in group)
    if holds_world(folder, identity, set(splits_of(config))):
        return MadeWorld(folder, total, was_there=True)
    library = load_library()
    check_world(config, library.classnames, library.styles)
    done = 0
    for owner, group in splits_of(config).items():
        for split in group:
            write_split(library, config, split, folder / split.name)
            done += split.num_images
            if progress:
                progress(done, total)
        if owner != "global":
            _write_site_file(library, group, folder / owner)
    write_json_atomic(
        folder / MARKER,
        identity | {"hash": sha256_json(identity), "classnames": list(library.classnames)},
    )
    return MadeWorld(folder, total, was_there=False)


def holds_world(folder: Path, identity: dict, owners: set[str]) -> bool:
    """Whether `folder` holds the whole world of this identity; False where one can be written.

    Args:
        folder: Output.
        identity: What the world is made from.
        owners: Folders that an interrupted earlier call may have left.

    Raises:
        OutputError: `folder` is a file, or holds another world or something else.
    """
    marker = folder / MARKER
    if marker.exists():
        if json.loads(marker.read_text()).get("hash") != sha256_json(identity):
            raise OutputError(
                f"{folder} holds another world. Choose a new --out, or remove that folder."
            )
        return True
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file. Choose a new --out.")
    if folder.exists() and any(item.name not in owners for item in folder.iterdir()):
        raise OutputError(f"{folder} is not empty and holds no world. Choose a new --out.")
    return False


def scenes_of(library: Library, config: WorldConfig, split: Split) -> Iterator[tuple[Scene, str]]:
    """Render the scenes of a split with one caption each, in order."""
    for index in range(split.num_images):
        rng = scene_rng(config.seed, split.name, index)
        plan = plan_scene(library, split, rng, config.spurious_strength)
        scene = render_scene(library, plan, config.image_size, rng, is_held_out=split.is_held_out)
        yield scene, caption(scene, rng)


def jpeg_of(scene: Scene, quality: int) -> bytes:
    """The scene's image as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(scene.image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write_split(library: Library, config: WorldConfig, split: Split, folder: Path) -> None:
    """Write one split: images/*.jpg, instances.json (COCO) and captions.json (COCO)."""
    names = labelled_classes(library, split)
    category_ids = {name: library.classnames.index(name) + 1 for name in names}
    images, annotations, captions = [], [], []
    for index, (scene, text) in enumerate(scenes_of(library, config, split)):
        file_name = f"{index:06d}.jpg"
        write_image(folder / "images" / file_name, jpeg_of(scene, config.jpeg_quality))
        size = config.image_size
        images.append({"id": index, "file_name": file_name, "width": size, "height": size,
                       "scene": scene.scene, "style": scene.style})  # fmt: skip
        captions.append({"id": index, "image_id": index, "caption": text})
        for item in scene.objects:
            annotations.append({
                "id": len(annotations) + 1, "image_id": index,
                "category_id": category_ids[item.classname],
                "bbox": list(item.box), "area": item.area, "iscrowd": 0,
                "colour": item.colour, "position": item.position, "visible": round(item.visible, 4),
            })  # fmt: skip
    info = {"description": f"VLTune scene world, split {split.name}", "version": str(WORLD_VERSION)}
    categories = [{"id": number, "name": name} for name, number in category_ids.items()]
    common = {"info": info, "images": images}
    _write_compact(
        folder / "instances.json", common | {"annotations": annotations, "categories": categories}
    )
    _write_compact(folder / "captions.json", common | {"annotations": captions})


def labelled_classes(library: Library, split: Split) -> tuple[str, ...]:
    """Classes the split's annotators know: a site labels what any of its styles can draw."""
    if split.name.startswith("global/"):
        return library.classnames
    known = {name for style in split.styles for name in library.classes_of(style)}
    return tuple(name for name in library.classnames if name in known)


def write_image(path: Path, content: bytes) -> None:
    """Write an image and the folders above it."""
    # A rename per image would halve the speed; world.json, written last, says that all are whole.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}. Choose another --out or free space."
        ) from error


def _write_compact(path: Path, content: dict) -> None:
    write_bytes_atomic(path, json.dumps(content, separators=(",", ":")).encode())


def _write_site_file(library: Library, group: list[Split], folder: Path) -> None:
    """Write the vltune_site.yaml that a site's owner would write by hand."""
    names = labelled_classes(library, group[0])
    content = {"site": folder.name}
    for split in group:
        part = split.name.rpartition("/")[2]
        content[part] = {"images": f"{part}/images", "annotations": f"{part}/instances.json"}
    content["unlabelled"] = [name for name in library.classnames if name not in names]
    with atomic_path(folder / "vltune_site.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False))
