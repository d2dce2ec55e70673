"""What a unified world is: sites that answer, that draw, or that do both, dealt out of one pool.

The pool of a part (questions, captioned images) does not depend on the number of sites: one site
with everything is the centralised run. Three ways to deal it out (`partition`):

* `iid`: every site gets the same number, chosen at random.
* `dirichlet`: for each answer (of a question) and each class (of a captioned image), shares over
  the sites are drawn from Dir(alpha) (Yurochkin et al. 2019, section 4; arXiv 2601.15390).
* `site`: as `iid` in numbers, but each site has its own drawing style and its own mix of scenes.

Questions are dealt one by one, as in the paper: two sites may ask about the same image.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from vltune.config import ConfigError
from vltune_lab.scenes.library import FEDERATION_STYLES
from vltune_lab.scenes.world import load_priors

UNIFIED_WORLD = Path(__file__).with_name("unified.yaml")
PARTS = ("train", "validation", "test")
LEAST = {"train": 8, "validation": 4, "test": 4}
"""What every site that has a task gets of it; the richest site gives."""
SCENE_ALPHA = 0.5
"""Of the mixes of scenes under `site`."""

Task = Literal["both", "vqa", "captions"]


@dataclass(frozen=True)
class Pool:
    """How much there is in all.

    Attributes:
        train: Images with questions, and as many captioned images.
        validation: The same.
        test: The same.
    """

    train: int = 1600
    validation: int = 320
    test: int = 320


@dataclass(frozen=True)
class UnifiedWorld:
    """A world for methods that understand and generate.

    Attributes:
        seed: Of everything.
        sites: Number of sites, called site-1, site-2, ...; ignored where `names` is given.
        names: Names of the sites.
        tasks: Task of each site in turn, repeated: `[vqa, captions]` makes every other site draw.
        partition: How the pool is dealt out.
        alpha: Of the Dirichlet distribution; small is skewed.
        pool: How much there is.
        questions_per_image: At most; a scene may offer fewer.
        disagreement: Probability that one of the ten annotators is wrong.
        vocabulary: Classes of captions and prompts: the first twelve, or all.
        styles: Drawing styles.
        prompts: GenEval prompts of each family at every site that draws, for validation and test.
        global_test: Images with questions, and captioned ones, of the global test set.
        global_prompts: GenEval prompts of each family of the global test set.
        image_size: Side in pixels.
        jpeg_quality: Of all images.
    """

    seed: int
    sites: int = 4
    names: tuple[str, ...] = ()
    tasks: tuple[Task, ...] = ("both",)
    partition: Literal["iid", "dirichlet", "site"] = "dirichlet"
    alpha: float = 0.5
    pool: Pool = field(default_factory=Pool)
    questions_per_image: int = 3
    disagreement: float = 0.1
    vocabulary: Literal["first", "all"] = "first"
    styles: tuple[str, ...] = FEDERATION_STYLES
    prompts: int = 4
    global_test: int = 300
    global_prompts: int = 25
    image_size: int = 64
    jpeg_quality: int = 92

    def __post_init__(self) -> None:
        names = self.site_names
        if len(set(names)) != len(names) or not names or "global" in names:
            raise ValueError(f"sites need distinct names other than 'global', got {list(names)}")
        if not self.tasks or set(self.tasks) - {"both", "vqa", "captions"}:
            raise ValueError(f"tasks: expected both, vqa or captions, got {list(self.tasks)}")
        if not self.alpha > 0:
            raise ValueError(f"alpha must be above 0, got {self.alpha}")
        if not 0 <= self.disagreement <= 1:
            raise ValueError(f"disagreement must be in [0, 1], got {self.disagreement}")
        if not 32 <= self.image_size <= 512:
            raise ValueError(f"image_size must be in 32..512 pixels, got {self.image_size}")
        if min(self.questions_per_image, self.prompts, self.global_test, self.global_prompts) < 1:
            raise ValueError(
                "questions_per_image, prompts, global_test and global_prompts must be >= 1"
            )
        for part in PARTS:
            if getattr(self.pool, part) < LEAST[part] * len(names):
                raise ValueError(
                    f"pool.{part} is {getattr(self.pool, part)}; {len(names)} sites need at least "
                    f"{LEAST[part] * len(names)}"
                )

    @property
    def site_names(self) -> tuple[str, ...]:
        """Names of the sites."""
        return self.names or tuple(f"site-{number}" for number in range(1, self.sites + 1))

    def task_of(self, site: int) -> Task:
        """What a site has, by its index."""
        return self.tasks[site % len(self.tasks)]

    def sites_with(self, task: Literal["vqa", "captions"]) -> list[int]:
        """Indices of the sites that have a task."""
        count = len(self.site_names)
        return [site for site in range(count) if self.task_of(site) in ("both", task)]


def deal(
    labels: Sequence[str], world: UnifiedWorld, task: Literal["vqa", "captions"], part: str
) -> list[int]:
    """Say for each item of a pool which site gets it.

    Args:
        labels: The answer or class of each item, at least `LEAST[part]` times the sites.
        world: Partition, alpha and sites.
        task: Only sites that have it get any.
        part: One of `PARTS`; each label's shares over the sites are the same in all of them.

    Raises:
        ConfigError: There are fewer items than the sites need.
    """
    sites = world.sites_with(task)
    if not sites:
        return []
    if len(labels) < LEAST[part] * len(sites):
        raise ConfigError(
            f"{len(labels)} items of {task} for {len(sites)} sites in {part}; each needs "
            f"{LEAST[part]}. Raise pool.{part}."
        )
    rng = _rng(world.seed, f"deal/{task}/{part}")
    if world.partition != "dirichlet":
        places = rng.permutation(np.arange(len(labels)) % len(sites))
        return [sites[int(place)] for place in places]
    shares = {label: _shares(world, label, task, len(sites)) for label in sorted(set(labels))}
    owners = [int(rng.choice(len(sites), p=shares[label])) for label in labels]
    _share_out(owners, len(sites), LEAST[part], rng)
    return [sites[owner] for owner in owners]


def scene_mix(world: UnifiedWorld, site: int | None) -> dict[str, float]:
    """Scene type -> weight: a site's own; all alike where nobody owns the images (None)."""
    scenes = sorted(load_priors().scenes)
    if site is None:
        return dict.fromkeys(scenes, 1.0)
    rng = _rng(world.seed, f"scenes/{world.site_names[site]}")
    weights = rng.dirichlet([SCENE_ALPHA] * len(scenes)) + 1e-6
    return {scene: float(weight) for scene, weight in zip(scenes, weights, strict=True)}


def styles_of(world: UnifiedWorld, site: int | None) -> tuple[str, ...]:
    """Drawing styles: a site's own one; all where nobody owns the images (None)."""
    if site is None:
        return world.styles
    return (world.styles[site % len(world.styles)],)


def check_unified_world(world: UnifiedWorld, styles: tuple[str, ...]) -> None:
    """Refuse drawing styles that do not exist.

    Raises:
        ConfigError: Naming what there is.
    """
    unknown = sorted(set(world.styles) - set(styles))
    if unknown or not world.styles:
        raise ConfigError(f"styles: unknown {unknown}; there are {sorted(styles)}")


def _shares(world: UnifiedWorld, label: str, task: str, count: int) -> np.ndarray:
    """One draw of Dir(alpha) for a label, whatever other labels there are."""
    rng = _rng(world.seed, f"shares/{task}/{label}")
    drawn = rng.dirichlet([world.alpha] * count) + 1e-9
    return drawn / drawn.sum()


def _share_out(owners: list[int], count: int, least: int, rng: np.random.Generator) -> None:
    """Let the richest site give to those below the least number, in place."""
    held = np.bincount(owners, minlength=count)
    while held.min() < least:
        poor, rich = int(held.argmin()), int(held.argmax())
        places = [index for index, owner in enumerate(owners) if owner == rich]
        owners[places[int(rng.integers(len(places)))]] = poor
        held[poor] += 1
        held[rich] -= 1


def _rng(seed: int, name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
