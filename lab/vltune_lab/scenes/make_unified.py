"""`vltune scenes make --task unified`: a world as VQA v2 files, captions and GenEval prompts.

Layout::

    world.json                               what it was made from, and whose drawings are in it
    site-1/vltune_site.yaml                  as the site's owner would write it
    site-1/train/questions.json  annotations.json       official VQA v2, ten answers
    site-1/train/captions.jsonl              image, caption
    site-1/train/images/000000000000.jpg ...
    site-1/validation/...  prompts.jsonl     GenEval's form; test likewise
    global/test/...
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from vltune.config import to_mapping
from vltune.files import atomic_path, sha256_json, write_json_atomic
from vltune_lab.scenes.library import load_library
from vltune_lab.scenes.make import MARKER, WORLD_VERSION, MadeWorld, holds_world
from vltune_lab.scenes.make_preference import provenance
from vltune_lab.scenes.unified_world import PARTS, UnifiedWorld, check_unified_world
from vltune_lab.scenes.unified_writer import PATTERN, UNIFIED_VERSION, UnifiedWriter


def make_unified_world(
    world: UnifiedWorld, folder: Path, *, progress: Callable[[int, int], None] | None = None
) -> MadeWorld:
    """Write all parts; the same configuration gives the same bytes.

    Args:
        world: The world.
        folder: Output; an earlier world of the same configuration is kept, another one is refused.
        progress: Called with (images drawn, images in all).

    Raises:
        ConfigError: The world names something that does not exist, or has too little for its sites.
        OutputError: `folder` is a file, holds another world or something else, or cannot be
            written.
    """
    identity = {
        "task": "unified",
        "world_version": WORLD_VERSION,
        "unified_version": UNIFIED_VERSION,
        "config": to_mapping(world),
    }
    num_tasks = sum(bool(world.sites_with(task)) for task in ("vqa", "captions"))
    per_task = sum(getattr(world.pool, part) for part in PARTS)
    total = num_tasks * per_task + 2 * world.global_test
    if holds_world(folder, identity, {*world.site_names, "global"}):
        return MadeWorld(folder, total, was_there=True)
    library = load_library()
    check_unified_world(world, library.styles)
    writer = UnifiedWriter(library, world, lambda done: progress(done, total) if progress else None)
    for part in PARTS:
        writer.write_part(folder, part)
    writer.write_global(folder / "global" / "test")
    for site, name in enumerate(world.site_names):
        _write_site_file(folder / name, world.task_of(site))
    write_json_atomic(
        folder / MARKER,
        identity
        | {
            "hash": sha256_json(identity),
            "classnames": list(library.classnames),
            "provenance": provenance(set(world.styles)),
        },
    )
    return MadeWorld(folder, total, was_there=False)


def _write_site_file(folder: Path, task: str) -> None:
    """Write the vltune_site.yaml that the site's owner would write."""
    content: dict[str, Any] = {"site": folder.name, "data": "unified"}
    for part in PARTS:
        split: dict[str, Any] = {}
        if task != "captions":
            split["vqa"] = {
                "questions": f"{part}/questions.json",
                "annotations": f"{part}/annotations.json",
                "images": f"{part}/images",
                "pattern": PATTERN,
            }
        if task != "vqa":
            split["captions"] = {"files": [f"{part}/captions.jsonl"]}
            if part != "train":
                split["prompts"] = f"{part}/prompts.jsonl"
        content[part] = split
    with atomic_path(folder / "vltune_site.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False))
