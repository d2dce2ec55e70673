"""`vltune scenes make --task preference`: a world as preference pairs in the form of RLAIF-V.

Layout::

    world.json                          what it was made from, and whose drawings are in it
    site-1/vltune_site.yaml             as the site's owner would write it
    site-1/train.jsonl  validation.jsonl  test.jsonl
    site-1/images/train/000000.jpg ...
    global/test/<house style>.jsonl     the same questions, answered as each house would
    global/test/images/000000.jpg ...

A line is a row of RLAIF-V. `origin_split` is JSON with the kind of the question, the plain answer,
the house style and the flaw of the rejected answer.
"""

import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import yaml

from vltune.config import to_mapping
from vltune.files import (
    atomic_path,
    sha256_file,
    sha256_json,
    write_bytes_atomic,
    write_json_atomic,
)
from vltune_lab.scenes.house_styles import (
    PLAIN,
    STYLES_FILE,
    HouseStyle,
    load_house_styles,
    vocabulary,
)
from vltune_lab.scenes.library import PACKAGED_ASSETS, Library, load_library
from vltune_lab.scenes.make import (
    MARKER,
    WORLD_VERSION,
    MadeWorld,
    holds_world,
    jpeg_of,
    labelled_classes,
    write_image,
)
from vltune_lab.scenes.pairs import Pair, make_pair
from vltune_lab.scenes.plan import plan_scene, scene_rng
from vltune_lab.scenes.preference_world import (
    PARTS,
    PreferenceWorld,
    asked_splits,
    check_preference_world,
    global_split,
)
from vltune_lab.scenes.questions import Question, ask
from vltune_lab.scenes.render import Scene, render_scene
from vltune_lab.scenes.world import Split, load_priors

PREFERENCE_VERSION = 1
"""Counts up when the same configuration would give other pairs of the same images."""
DATASET = "vltune-scenes"


def make_preference_world(
    world: PreferenceWorld, folder: Path, *, progress: Callable[[int, int], None] | None = None
) -> MadeWorld:
    """Write all parts; the same configuration gives the same bytes.

    Args:
        world: The world.
        folder: Output; an earlier world of the same configuration is kept, another one is refused.
        progress: Called with (images written, images in all).

    Raises:
        ConfigError: The world names something that does not exist.
        OutputError: `folder` is a file, holds another world or something else, or cannot be
            written.
    """
    identity = {
        "task": "preference",
        "world_version": WORLD_VERSION,
        "preference_version": PREFERENCE_VERSION,
        "house_styles": sha256_file(STYLES_FILE),
        "config": to_mapping(world),
    }
    dealt = asked_splits(world)
    total = world.test + sum(part.split.num_images for parts in dealt.values() for part in parts)
    if holds_world(folder, identity, {*dealt, "global"}):
        return MadeWorld(folder, total, was_there=True)
    library = load_library()
    check_preference_world(world, tuple(load_priors().scenes), library.styles)
    writer = _Writer(library, world)
    done = 0
    for site, parts in dealt.items():
        for part in parts:
            writer.write_part(folder / site, part.split, part.kinds, part.house_style)
            done += part.split.num_images
            if progress:
                progress(done, total)
        _write_site_file(folder / site)
    writer.write_global(folder / "global" / "test")
    if progress:
        progress(total, total)
    write_json_atomic(
        folder / MARKER,
        identity
        | {
            "hash": sha256_json(identity),
            "classnames": list(library.classnames),
            "houses": sorted(writer.houses),
            "provenance": provenance(_styles_used(world)),
        },
    )
    return MadeWorld(folder, total, was_there=False)


class _Writer:
    """Draws, asks and writes one world."""

    def __init__(self, library: Library, world: PreferenceWorld) -> None:
        self.library = library
        self.world = world
        self.words = vocabulary(library.classnames, tuple(load_priors().scenes))
        names = {site.house_style for site in world.sites}
        if world.partition != "house_style":
            names.add(world.common_style)
        self.houses: dict[str, HouseStyle] = {
            name: style for name, style in load_house_styles().items() if name in names
        }

    def write_part(self, folder: Path, split: Split, kinds: dict[str, float], house: str) -> None:
        """Write a site's part in its house's words."""
        part = split.name.rpartition("/")[2]
        lines = []
        for index, scene, questions in self._asked(split, kinds):
            name = f"images/{part}/{index:06d}.jpg"
            write_image(folder / name, jpeg_of(scene, self.world.jpeg_quality))
            rng = _rng(self.world.seed, f"{split.name}/pairs/{house}", index)
            for question in questions:
                pair = self._pair(question, scene, house, self.houses, rng)
                lines.append(_line(pair, scene, house, name, len(lines)))
        _write_lines(folder / f"{part}.jsonl", lines)

    def write_global(self, folder: Path) -> None:
        """Write the global test set: the same questions as every house, and plainly, answers."""
        split, kinds = global_split(self.world)
        houses = {**self.houses, PLAIN: load_house_styles()[PLAIN]}
        lines: dict[str, list[dict]] = {house: [] for house in houses}
        for index, scene, questions in self._asked(split, kinds):
            name = f"images/{index:06d}.jpg"
            write_image(folder / name, jpeg_of(scene, self.world.jpeg_quality))
            for house, written in lines.items():
                rng = _rng(self.world.seed, f"{split.name}/pairs/{house}", index)
                for question in questions:
                    pair = self._pair(question, scene, house, houses, rng)
                    written.append(_line(pair, scene, house, name, len(written)))
        for house, written in lines.items():
            _write_lines(folder / f"{house}.jsonl", written)

    def _asked(
        self, split: Split, kinds: dict[str, float]
    ) -> Iterator[tuple[int, Scene, list[Question]]]:
        """Scenes with the questions that they offer."""
        classnames = labelled_classes(self.library, split)
        for index in range(split.num_images):
            rng = scene_rng(self.world.seed, split.name, index)
            plan = plan_scene(self.library, split, rng, 0.0)
            size, held_out = self.world.image_size, split.is_held_out
            scene = render_scene(self.library, plan, size, rng, is_held_out=held_out)
            rng = _rng(self.world.seed, f"{split.name}/questions", index)
            count = self.world.questions_per_image
            yield index, scene, ask(scene, classnames, rng, count=count, kinds=kinds)

    def _pair(
        self,
        question: Question,
        scene: Scene,
        house: str,
        houses: dict[str, HouseStyle],
        rng: np.random.Generator,
    ) -> Pair:
        share = self.world.other_style
        return make_pair(question, scene, house, houses, self.words, share, rng)


def _rng(seed: int, name: str, index: int) -> np.random.Generator:
    """One stream per (seed, purpose, image): questions do not depend on how pixels are drawn."""
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode()), index]))


def _line(pair: Pair, scene: Scene, house: str, image: str, index: int) -> dict:
    about = {
        "kind": pair.question.kind,
        "answer": pair.question.answer,
        "house_style": house,
        "flaw": pair.flaw,
        "style": scene.style,
    }
    return {
        "ds_name": DATASET,
        "image": image,
        "question": pair.question.question,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "origin_dataset": scene.scene,
        "origin_split": json.dumps(about, ensure_ascii=False),
        "idx": str(index),
        "image_path": image,
    }


def _write_lines(path: Path, rows: list[dict]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_bytes_atomic(path, text.encode())


def _write_site_file(folder: Path) -> None:
    content = {"site": folder.name, "data": "preference"}
    content |= {part: {"files": [f"{part}.jsonl"]} for part in PARTS}
    with atomic_path(folder / "vltune_site.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False))


def _styles_used(world: PreferenceWorld) -> set[str]:
    return {style for site in world.sites for style in site.styles} | set(world.test_styles)


def provenance(used: set[str]) -> dict:
    """Whose work the images are made of, and under which licences (assets/ATTRIBUTION.md).

    Args:
        used: Drawing styles in them.
    """
    sources = json.loads((PACKAGED_ASSETS / "sources.json").read_text(encoding="utf-8"))

    def credit(source: dict[str, str]) -> dict[str, str]:
        return {key: source[key] for key in ("work", "author", "licence", "url")}

    return {
        "drawings": {style: credit(sources["styles"][style]) for style in sorted(used)},
        "backgrounds": credit(sources["backgrounds"]),
        "texts": "Apache-2.0, VLTune",
        "note": "Images are adapted from the drawings named here and stay under their licences.",
    }
