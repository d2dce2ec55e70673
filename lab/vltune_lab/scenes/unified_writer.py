"""Draws a unified world's pools, deals them out and writes each site's files."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vltune.files import write_bytes_atomic
from vltune.geneval_prompts import TAGS, GenevalPrompt, as_lines
from vltune_lab.scenes.annotators import annotate, entries_of
from vltune_lab.scenes.geneval_prompts import FIRST_CLASSES, draw_prompt, make_prompts
from vltune_lab.scenes.geneval_scenes import PromptPainter
from vltune_lab.scenes.house_styles import vocabulary
from vltune_lab.scenes.library import Library
from vltune_lab.scenes.make import jpeg_of, write_image
from vltune_lab.scenes.plan import plan_scene, scene_rng
from vltune_lab.scenes.questions import Question, ask
from vltune_lab.scenes.render import Scene, render_scene
from vltune_lab.scenes.unified_world import UnifiedWorld, deal, scene_mix, styles_of
from vltune_lab.scenes.world import Split, load_priors

UNIFIED_VERSION = 1
"""Counts up when the same configuration would give another world of the same images."""
PATTERN = "%012d.jpg"
FIRST_CAPTIONED = 500_000
"""Numbers of captioned images start here, those with questions at 0."""
OwnerOf = Callable[[tuple[int, int]], int]
"""Which site has an item: (number of the image, place of the question)."""
PER_IMAGE = 100
"""question_id = image_id * PER_IMAGE + its place."""


class GatheredPart:
    """What one folder will hold, gathered while the pool is drawn."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.questions: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.captions: list[dict[str, str]] = []

    def write(self, subtype: str) -> None:
        """Write what there is."""
        info = {"description": "VLTune scene world", "version": str(UNIFIED_VERSION)}
        common = {"info": info, "data_type": "vltune-scenes", "data_subtype": subtype}
        if self.questions:
            task = {"task_type": "Open-Ended", "questions": self.questions}
            _write_compact(self.folder / "questions.json", common | task)
            _write_compact(
                self.folder / "annotations.json", common | {"annotations": self.annotations}
            )
        if self.captions:
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in self.captions)
            write_bytes_atomic(self.folder / "captions.jsonl", "".join(lines).encode())


class UnifiedWriter:
    """Draws, asks and writes one world."""

    def __init__(self, library: Library, world: UnifiedWorld, show: Callable[[int], None]) -> None:
        self.library = library
        self.world = world
        self.words = vocabulary(library.classnames, tuple(load_priors().scenes))
        self.painter = PromptPainter(library, size=world.image_size)
        is_first = world.vocabulary == "first"
        self.classnames = FIRST_CLASSES if is_first else _drawable(library, world.styles)
        self._show = show
        self._done = 0

    def write_part(self, folder: Path, part: str) -> None:
        """Deal one part's pool out to the sites and write it."""
        world = self.world
        parts = [GatheredPart(folder / name / part) for name in world.site_names]
        count = getattr(world.pool, part)
        for task in ("vqa", "captions"):
            holders = world.sites_with(task)
            if not holders:
                continue
            if world.partition != "site":
                owner_of = self._owners(task, part, range(count))
                self._fill(task, part, range(count), owner_of, parts)
                continue
            for place, site in enumerate(holders):
                own = range(place, count, len(holders))
                self._fill(task, part, own, partial(_always, site), parts, site)
        for site, gathered in enumerate(parts):
            gathered.write(part)
            if part != "train" and site in world.sites_with("captions"):
                self._write_prompts(gathered.folder, world.prompts, f"{part}/{site}")

    def write_global(self, folder: Path) -> None:
        """Write the test set that no site owns: all styles, all scene types, every family."""
        gathered = [GatheredPart(folder)]
        for task in ("vqa", "captions"):
            numbers = range(self.world.global_test)
            self._fill(task, "global", numbers, partial(_always, 0), gathered)
        gathered[0].write("test")
        self._write_prompts(folder, self.world.global_prompts, "global")

    def _fill(
        self,
        task: Literal["vqa", "captions"],
        part: str,
        numbers: Sequence[int],
        owner_of: OwnerOf,
        parts: list[GatheredPart],
        site: int | None = None,
    ) -> None:
        """Draw some images of a pool and put each item where it belongs."""
        add = self._add_questions if task == "vqa" else self._add_caption
        for number in numbers:
            add(part, number, owner_of, parts, site)
            self._done += 1
            self._show(self._done)

    def _add_questions(
        self,
        part: str,
        number: int,
        owner_of: OwnerOf,
        parts: list[GatheredPart],
        site: int | None,
    ) -> None:
        scene, questions = self._asked(part, number, site)
        image, written = None, set()
        for place, question in enumerate(questions):
            owner = owner_of((number, place))
            rng = self._rng(f"{part}/answers", number * PER_IMAGE + place)
            answers = annotate(question, scene, self.words, self.world.disagreement, rng)
            asked, answered = entries_of(number * PER_IMAGE + place, number, question, answers)
            parts[owner].questions.append(asked)
            parts[owner].annotations.append(answered)
            if owner not in written:
                image = image or jpeg_of(scene, self.world.jpeg_quality)
                write_image(parts[owner].folder / "images" / (PATTERN % number), image)
                written.add(owner)

    def _add_caption(
        self,
        part: str,
        number: int,
        owner_of: OwnerOf,
        parts: list[GatheredPart],
        site: int | None,
    ) -> None:
        prompt, rng = self._captioned(part, number, site)
        is_test = part in ("test", "global")
        scene = self.painter.draw(
            prompt, rng, styles=styles_of(self.world, site),
            drawings="held_out" if is_test else "train", is_held_out=is_test,
        )  # fmt: skip
        gathered = parts[owner_of((number, 0))]
        name = f"images/{PATTERN % (FIRST_CAPTIONED + number)}"
        write_image(gathered.folder / name, jpeg_of(scene, self.world.jpeg_quality))
        gathered.captions.append({"image": name, "caption": prompt.prompt})

    def _owners(
        self, task: Literal["vqa", "captions"], part: str, numbers: Sequence[int]
    ) -> OwnerOf:
        """Deal a pool out by its labels: answers of questions, first classes of captions."""
        keys, labels = [], []
        for number in numbers:
            if task == "captions":
                prompt, _ = self._captioned(part, number, None)
                keys.append((number, 0))
                labels.append(prompt.include[0].classname)
                continue
            _, questions = self._asked(part, number, None)
            keys += [(number, place) for place in range(len(questions))]
            labels += [question.answer for question in questions]
        owners = dict(zip(keys, deal(labels, self.world, task, part), strict=True))
        return owners.__getitem__

    def _asked(self, part: str, number: int, site: int | None) -> tuple[Scene, list[Question]]:
        """One image of the pool and its questions."""
        is_test = part in ("test", "global")
        styles = styles_of(self.world, site)
        split = Split(
            part, 1, styles, scene_mix(self.world, site),
            drawings="held_out" if is_test else "train", is_held_out=is_test,
        )  # fmt: skip
        rng = self._rng(f"{part}/scenes", number)
        plan = plan_scene(self.library, split, rng, 0.0)
        size = self.world.image_size
        scene = render_scene(self.library, plan, size, rng, is_held_out=is_test)
        names = _drawable(self.library, styles)
        rng = self._rng(f"{part}/questions", number)
        return scene, ask(scene, names, rng, count=self.world.questions_per_image)

    def _captioned(
        self, part: str, number: int, site: int | None
    ) -> tuple[GenevalPrompt, np.random.Generator]:
        """One caption of the pool, and the stream that draws its image."""
        rng = self._rng(f"{part}/captions", number)
        while True:
            prompt = draw_prompt(TAGS[int(rng.integers(len(TAGS)))], self.classnames, rng)
            if self.painter.styles_for(prompt, styles_of(self.world, site)):
                return prompt, rng

    def _write_prompts(self, folder: Path, per_tag: int, name: str) -> None:
        rng = self._rng(f"prompts/{name}", 0)
        prompts = make_prompts(self.classnames, per_tag=per_tag, seed=int(rng.integers(2**31)))
        write_bytes_atomic(folder / "prompts.jsonl", as_lines(prompts).encode())

    def _rng(self, name: str, index: int) -> np.random.Generator:
        return scene_rng(self.world.seed, f"unified/{name}", index)


def _always(site: int, item: tuple[int, int]) -> int:
    return site


def _drawable(library: Library, styles: Sequence[str]) -> tuple[str, ...]:
    """Classes that one of the styles can draw."""
    known = {name for style in styles for name in library.classes_of(style)}
    return tuple(name for name in library.classnames if name in known)


def _write_compact(path: Path, content: dict[str, Any]) -> None:
    write_bytes_atomic(path, json.dumps(content, ensure_ascii=False).encode())
