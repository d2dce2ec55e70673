"""What a world is: scenes, sites, splits and spurious pairs, read from one YAML file."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vltune.config import ConfigError, from_mapping, read_mapping
from vltune_lab.scenes.library import FEDERATION_STYLES, SHIFTED_STYLES

PRIORS_FILE = Path(__file__).with_name("priors.yaml")
DEMO_WORLD = Path(__file__).with_name("demo.yaml")


@dataclass(frozen=True)
class ScenePrior:
    """Classes of one scene type: `core` weigh 1, `sometimes` 0.3."""

    core: tuple[str, ...]
    sometimes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScenePriors:
    """The oracle: every scene type's label distribution."""

    scenes: dict[str, ScenePrior]
    anything: float

    def weights(self, scene: str, classnames: tuple[str, ...]) -> NDArray[np.float64]:
        """Probability of each class in `scene`, summing to 1 over `classnames`."""
        prior = self.scenes[scene]
        weights = np.full(len(classnames), self.anything / max(1, len(classnames)))
        for index, name in enumerate(classnames):
            weights[index] += 1.0 if name in prior.core else 0.3 if name in prior.sometimes else 0.0
        return weights / weights.sum()


@cache
def load_priors(path: Path = PRIORS_FILE) -> ScenePriors:
    """Read the scene priors."""
    return from_mapping(ScenePriors, read_mapping(path), str(path))


@dataclass(frozen=True)
class SiteWorld:
    """One site of the world.

    Attributes:
        name: Folder and FLARE site name.
        styles: Drawing styles of its images.
        scenes: Scene type -> weight of the site's mix; scenes left out never occur.
        spurious: Pairs (A, B): B is added to `WorldConfig.spurious_strength` of the images with A.
        train: Images.
        validation: Images.
        test: Images of the site's own test set (same mix and pairs, held-out sprites).
    """

    name: str
    styles: tuple[str, ...]
    scenes: dict[str, float]
    spurious: tuple[tuple[str, ...], ...] = ()
    train: int = 300
    validation: int = 150
    test: int = 0

    def __post_init__(self) -> None:
        if not self.styles or not self.scenes or self.train < 1:
            raise ConfigError(f"site {self.name!r}: needs styles, scenes and train >= 1")
        if any(len(pair) != 2 for pair in self.spurious):
            raise ConfigError(
                f"site {self.name!r}: spurious takes pairs [A, B], got {self.spurious}"
            )
        if any(weight < 0 for weight in self.scenes.values()) or sum(self.scenes.values()) <= 0:
            raise ConfigError(f"site {self.name!r}: scene weights must be >= 0 and not all 0")


@dataclass(frozen=True)
class WorldConfig:
    """A world: sites plus test sets that no site owns."""

    seed: int
    sites: tuple[SiteWorld, ...]
    image_size: int = 64
    spurious_strength: float = 0.9
    test: int = 800
    test_styles: tuple[str, ...] = FEDERATION_STYLES
    shifted: int = 0
    shifted_styles: tuple[str, ...] = SHIFTED_STYLES
    jpeg_quality: int = 92

    def __post_init__(self) -> None:
        names = [site.name for site in self.sites]
        if len(set(names)) != len(names) or not names:
            raise ConfigError(f"sites need distinct names, got {names}")
        if not 32 <= self.image_size <= 512:
            raise ConfigError(f"image_size must be in 32..512 pixels, got {self.image_size}")
        if not 0 <= self.spurious_strength <= 1:
            raise ConfigError(f"spurious_strength must be in [0, 1], got {self.spurious_strength}")


@dataclass(frozen=True)
class Split:
    """One set of images: how many, drawn from what.

    Attributes:
        name: Folder name; also part of the seed.
        num_images: Images.
        styles: One is chosen for each image.
        scenes: Scene type -> weight.
        spurious: Pairs planted in this split; empty in the shared test sets, which break them.
        drawings: `train` leaves out the held-out drawing of each class that has at least three,
            `held_out` takes only that one, `all` takes every drawing (pre-training).
        is_held_out: Use held-out panoramas (test) instead of the others (train).
    """

    name: str
    num_images: int
    styles: tuple[str, ...]
    scenes: dict[str, float]
    spurious: tuple[tuple[str, ...], ...] = ()
    drawings: Literal["train", "held_out", "all"] = "train"
    is_held_out: bool = False


def splits_of(world: WorldConfig) -> dict[str, list[Split]]:
    """Return the splits by owner: each site's name, and `global` for the shared test sets."""
    result: dict[str, list[Split]] = {}
    for site in world.sites:
        own = [
            Split(f"{site.name}/train", site.train, site.styles, site.scenes, site.spurious),
            Split(
                f"{site.name}/validation", site.validation, site.styles, site.scenes, site.spurious
            ),
            Split(
                f"{site.name}/test",
                site.test,
                site.styles,
                site.scenes,
                site.spurious,
                drawings="held_out",
                is_held_out=True,
            ),
        ]
        result[site.name] = [split for split in own if split.num_images]
    everywhere = dict.fromkeys(load_priors().scenes, 1.0)
    shared = (
        ("test", world.test, world.test_styles),
        ("shifted", world.shifted, world.shifted_styles),
    )
    result["global"] = [
        Split(f"global/{name}", count, styles, everywhere, drawings="held_out", is_held_out=True)
        for name, count, styles in shared
        if count
    ]
    return result


def check_world(world: WorldConfig, classnames: tuple[str, ...], styles: tuple[str, ...]) -> None:
    """Refuse scenes, classes or styles that do not exist.

    Raises:
        ConfigError: Naming the site, the value and what there is.
    """
    priors = load_priors()
    for site in world.sites:
        _refuse(f"site {site.name!r}: scenes", set(site.scenes), set(priors.scenes))
        _refuse(f"site {site.name!r}: styles", set(site.styles), set(styles))
        named = {name for pair in site.spurious for name in pair}
        _refuse(f"site {site.name!r}: spurious", named, set(classnames))
    _refuse("test_styles", set(world.test_styles), set(styles))
    _refuse("shifted_styles", set(world.shifted_styles), set(styles))


def _refuse(what: str, got: set[Any], allowed: set[Any]) -> None:
    unknown = sorted(got - allowed)
    if unknown:
        raise ConfigError(f"{what}: unknown {unknown}; there are {sorted(allowed)}")
