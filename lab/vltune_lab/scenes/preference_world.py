"""What a preference world is: sites with their own looks, scenes, questions and house style.

Three ways to deal the world out (`partition`):

* `house_style`: each site has its own drawing styles, scene mix and house style. No one answer is
  right everywhere.
* `iid`: every site draws from one distribution: all sites' drawing styles, all scene types alike,
  one house style (`common_style`).
* `dirichlet`: as `iid`, but scene types and kinds of question are skewed. For each of them, shares
  over the S sites are drawn from Dir(alpha) (Yurochkin et al. 2019, section 4); a site's own mix is
  its shares, normalised. Deviation: sites keep their sizes.
"""

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from vltune.config import ConfigError
from vltune_lab.scenes.house_styles import load_house_styles
from vltune_lab.scenes.library import FEDERATION_STYLES
from vltune_lab.scenes.questions import KINDS
from vltune_lab.scenes.world import Split, load_priors

PREFERENCE_WORLD = Path(__file__).with_name("preference.yaml")
PARTS = ("train", "validation", "test")
_LEAST_SHARE = 1e-6
"""Dir(0.01) may give a site shares that are all 0 in floating point."""


@dataclass(frozen=True)
class PreferenceSite:
    """One site.

    Attributes:
        name: Folder and FLARE site name.
        house_style: How it answers, a name of house_styles.yaml.
        styles: Drawing styles of its images.
        scenes: Scene type -> weight of the site's mix; scenes left out never occur.
        train: Images.
        validation: Images.
        test: Images of its own test set (held-out drawings and panoramas).
    """

    name: str
    house_style: str
    styles: tuple[str, ...]
    scenes: dict[str, float]
    train: int = 400
    validation: int = 80
    test: int = 120

    def __post_init__(self) -> None:
        if not self.styles or min(self.train, self.validation, self.test) < 1:
            raise ValueError(
                f"site {self.name!r}: needs styles, and train, validation and test >= 1"
            )
        if any(weight < 0 for weight in self.scenes.values()) or sum(self.scenes.values()) <= 0:
            raise ValueError(f"site {self.name!r}: scene weights must be >= 0 and not all 0")


@dataclass(frozen=True)
class PreferenceWorld:
    """A world of sites that answer questions about their images.

    Attributes:
        seed: Of everything.
        sites: The sites.
        image_size: Side in pixels.
        partition: How the world is dealt out.
        alpha: Of the Dirichlet distribution; small is skewed.
        common_style: House style of every site under `iid` and `dirichlet`.
        questions_per_image: At most; a scene may offer fewer.
        kinds: Kind of question -> weight, before `partition`; kinds left out are not asked.
        other_style: Share of rejected answers that have the right content in another house's words;
            the others have a wrong content in the site's own.
        test: Images of the global test set, asked in every house style.
        test_styles: Their drawing styles.
        jpeg_quality: Of all images.
    """

    seed: int
    sites: tuple[PreferenceSite, ...]
    image_size: int = 64
    partition: Literal["house_style", "dirichlet", "iid"] = "house_style"
    alpha: float = 0.5
    common_style: str = "telegraph"
    questions_per_image: int = 4
    kinds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 1.0))
    other_style: float = 0.5
    test: int = 150
    test_styles: tuple[str, ...] = FEDERATION_STYLES
    jpeg_quality: int = 92

    def __post_init__(self) -> None:
        names = [site.name for site in self.sites]
        if len(set(names)) != len(names) or not names or "global" in names:
            raise ValueError(f"sites need distinct names other than 'global', got {names}")
        if not 32 <= self.image_size <= 512:
            raise ValueError(f"image_size must be in 32..512 pixels, got {self.image_size}")
        if not self.alpha > 0:
            raise ValueError(f"alpha must be above 0, got {self.alpha}")
        if not 0 <= self.other_style <= 1:
            raise ValueError(f"other_style must be in [0, 1], got {self.other_style}")
        if self.questions_per_image < 1 or self.test < 1:
            raise ValueError("questions_per_image and test must be >= 1")
        if not self.kinds or min(self.kinds.values()) < 0 or sum(self.kinds.values()) <= 0:
            raise ValueError("kinds: weights must be >= 0 and not all 0")


@dataclass(frozen=True)
class AskedSplit:
    """One set of images with questions.

    Attributes:
        split: How many images, drawn from what.
        kinds: Kind of question -> weight, in the order of `KINDS`.
        house_style: How the right answers are said.
    """

    split: Split
    kinds: dict[str, float]
    house_style: str


def asked_splits(world: PreferenceWorld) -> dict[str, list[AskedSplit]]:
    """The parts of each site, after the world was dealt out."""
    scenes, kinds = _mixes(world)
    result: dict[str, list[AskedSplit]] = {}
    for index, site in enumerate(world.sites):
        is_own = world.partition == "house_style"
        result[site.name] = [
            AskedSplit(
                Split(
                    f"{site.name}/{part}",
                    getattr(site, part),
                    site.styles if is_own else _all_styles(world),
                    scenes[index],
                    drawings="held_out" if part == "test" else "train",
                    is_held_out=part == "test",
                ),
                kinds[index],
                site.house_style if is_own else world.common_style,
            )
            for part in PARTS
        ]
    return result


def global_split(world: PreferenceWorld) -> tuple[Split, dict[str, float]]:
    """The global test set and its kinds: every scene type alike, held-out drawings."""
    everywhere = dict.fromkeys(load_priors().scenes, 1.0)
    split = Split(
        "global/test",
        world.test,
        world.test_styles,
        everywhere,
        drawings="held_out",
        is_held_out=True,
    )
    return split, _ordered(world.kinds)


def check_preference_world(
    world: PreferenceWorld, places: tuple[str, ...], styles: tuple[str, ...]
) -> None:
    """Refuse scenes, drawing styles, house styles or kinds that do not exist.

    Raises:
        ConfigError: Naming what there is.
    """
    houses = tuple(load_house_styles())
    _refuse("kinds", world.kinds, KINDS)
    _refuse("common_style", (world.common_style,), houses)
    _refuse("test_styles", world.test_styles, styles)
    for site in world.sites:
        _refuse(f"site {site.name!r}: scenes", site.scenes, places)
        _refuse(f"site {site.name!r}: styles", site.styles, styles)
        _refuse(f"site {site.name!r}: house_style", (site.house_style,), houses)


def _mixes(
    world: PreferenceWorld,
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Scene mix and kinds of each site."""
    count, kinds = len(world.sites), _ordered(world.kinds)
    if world.partition == "house_style":
        return [dict(site.scenes) for site in world.sites], [kinds] * count
    everywhere = dict.fromkeys(sorted(load_priors().scenes), 1.0)
    if world.partition == "iid":
        return [everywhere] * count, [kinds] * count
    return _skewed(world, everywhere, "scenes"), _skewed(world, kinds, "kinds")


def _skewed(world: PreferenceWorld, mix: dict[str, float], name: str) -> list[dict[str, float]]:
    """Deal each entry of a mix out to the sites with shares from Dir(alpha)."""
    rng = np.random.Generator(np.random.PCG64([world.seed, zlib.crc32(name.encode())]))
    shares = rng.dirichlet([world.alpha] * len(world.sites), size=len(mix)) + _LEAST_SHARE
    return [
        {key: float(weight * shares[row, site]) for row, (key, weight) in enumerate(mix.items())}
        for site in range(len(world.sites))
    ]


def _all_styles(world: PreferenceWorld) -> tuple[str, ...]:
    return tuple(sorted({style for site in world.sites for style in site.styles}))


def _ordered(kinds: dict[str, float]) -> dict[str, float]:
    return {kind: kinds[kind] for kind in KINDS if kind in kinds}


def _refuse(what: str, got: object, allowed: tuple[str, ...]) -> None:
    unknown = sorted(set(got) - set(allowed))
    if unknown:
        raise ConfigError(f"{what}: unknown {unknown}; there are {sorted(allowed)}")
