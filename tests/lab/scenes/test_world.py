from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from vltune.config import ConfigError, load_config
from vltune_lab.scenes.captions import article, caption, plural
from vltune_lab.scenes.library import FEDERATION_STYLES, PRETRAINING_STYLES, Library, load_library
from vltune_lab.scenes.plan import colour_name, plan_scene, scene_rng
from vltune_lab.scenes.procedural import PAINTERS, procedural_background
from vltune_lab.scenes.render import MIN_VISIBLE, position_name, render_scene
from vltune_lab.scenes.world import (
    DEMO_WORLD,
    SiteWorld,
    Split,
    WorldConfig,
    check_world,
    load_priors,
    splits_of,
)

SIZE = 64
STREET = Split("test/street", 0, ("twemoji",), {"street": 1.0})


@pytest.fixture(scope="module")
def library() -> Library:
    return load_library(styles=("twemoji", "fluent3d"), verify=False)


def draw(library: Library, split: Split, index: int, strength: float = 0.9):
    rng = scene_rng(7, split.name, index)
    plan = plan_scene(library, split, rng, strength)
    return plan, render_scene(library, plan, SIZE, rng, is_held_out=split.is_held_out)


def test_same_seed_same_pixels_and_other_seed_other_pixels(library: Library) -> None:
    first, second, other = (draw(library, STREET, index)[1] for index in (3, 3, 4))
    assert np.array_equal(first.image, second.image)
    assert first.objects == second.objects
    assert not np.array_equal(first.image, other.image)


def test_truth_agrees_with_the_owner_map(library: Library) -> None:
    for index in range(40):
        _, scene = draw(library, STREET, index)
        assert scene.image.shape == (SIZE, SIZE, 3)
        assert scene.image.dtype == np.uint8
        for number, item in enumerate(scene.objects):
            x, y, width, height = item.box
            assert 0 <= x < x + width <= SIZE
            assert 0 <= y < y + height <= SIZE
            rows, columns = np.nonzero(scene.owner == number)
            assert len(rows) == item.area > 0
            assert x <= columns.min() <= columns.max() < x + width
            assert y <= rows.min() <= rows.max() < y + height
            assert item.visible >= MIN_VISIBLE - 1e-6


def test_scenes_have_the_classes_of_their_prior(library: Library) -> None:
    counts = Counter(
        obj.sprite.classname for i in range(300) for obj in draw(library, STREET, i)[0].objects
    )
    core = load_priors().scenes["street"].core
    assert sum(counts[name] for name in core) > 0.6 * counts.total()
    weights = load_priors().weights("street", library.classnames)
    assert weights.sum() == pytest.approx(1.0)
    assert (
        weights[library.classnames.index("car")] > 20 * weights[library.classnames.index("toilet")]
    )


def test_spurious_pairs_follow_their_strength_and_the_test_set_breaks_them(
    library: Library,
) -> None:
    planted = Split("a/train", 0, ("twemoji",), {"street": 1.0}, (("car", "teddy bear"),))
    for split, low, high in ((planted, 0.8, 1.0), (STREET, 0.0, 0.1)):
        names = [
            {o.sprite.classname for o in draw(library, split, i)[0].objects} for i in range(300)
        ]
        with_first = [group for group in names if "car" in group]
        share = np.mean(["teddy bear" in group for group in with_first])
        assert len(with_first) > 30
        assert low <= share <= high


def test_held_out_sprites_are_never_in_training(library: Library) -> None:
    def indices(split: Split) -> set[int]:
        plans = (draw(library, split, i)[0] for i in range(300))
        return {
            o.sprite.index for plan in plans for o in plan.objects if o.sprite.classname == "car"
        }

    assert indices(STREET).isdisjoint(indices(replace(STREET, drawings="held_out")))


def test_styles_of_pretraining_and_federation_are_disjoint() -> None:
    assert not set(PRETRAINING_STYLES) & set(FEDERATION_STYLES)


@pytest.mark.parametrize(
    ("rgb", "name"),
    [((255, 0, 0), "red"), ((10, 10, 10), "black"), ((250, 250, 250), "white"),
     ((128, 128, 128), "grey"), ((0, 200, 0), "green"), ((20, 40, 220), "blue"),
     ((255, 230, 40), "yellow"), ((255, 140, 0), "orange"), ((120, 70, 20), "brown"),
     ((150, 40, 200), "purple"), ((255, 105, 180), "pink"), ((999, -5, 0), "red")],
)  # fmt: skip
def test_colour_names(rgb: tuple[int, int, int], name: str) -> None:
    assert colour_name(np.array(rgb, dtype=np.float32)) == name


def test_position_names_by_hand() -> None:
    """Centres at (10, 10), (32, 32), (58, 32) of 64 pixels; thirds end at 21.3 and 42.7."""
    assert position_name((5, 5, 10, 10), 64) == "top left"
    assert position_name((27, 27, 10, 10), 64) == "centre"
    assert position_name((53, 27, 10, 10), 64) == "right"


def test_captions_name_every_class(library: Library) -> None:
    for index in range(30):
        _, scene = draw(library, STREET, index)
        text = caption(scene, np.random.default_rng(index))
        for item in scene.objects:
            assert item.classname in text or plural(item.classname) in text
    assert (article("apple"), article("car"), article("scissors")) == (
        "an apple",
        "a car",
        "scissors",
    )


@pytest.mark.parametrize("scene", [*PAINTERS, "some other room"])
def test_drawn_backgrounds(scene: str) -> None:
    image = procedural_background(scene, 48, np.random.default_rng(1))
    assert image.shape == (48, 48, 3)
    assert image.dtype == np.uint8
    assert image.std() > 2


def test_demo_world_is_valid_and_its_pairs_are_not_implied_by_any_scene() -> None:
    world = load_config(WorldConfig, DEMO_WORLD)
    full = load_library(verify=False)
    check_world(world, full.classnames, full.styles)
    priors = load_priors()
    for site in world.sites:
        for first, second in site.spurious:
            for scene in site.scenes:
                prior = priors.scenes[scene]
                assert not {first, second} <= set(prior.core), (site.name, scene, first, second)
    names = [split.name for group in splits_of(world).values() for split in group]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"scenes": {"moon": 1.0}}, "moon"),
        ({"styles": ("crayon",)}, "crayon"),
        ({"spurious": (("car", "dragon"),)}, "dragon"),
    ],
)
def test_unknown_scene_style_or_class_is_named(library: Library, change: dict, word: str) -> None:
    site = replace(SiteWorld("a", ("twemoji",), {"street": 1.0}), **change)
    world = WorldConfig(
        seed=1, sites=(site,), test_styles=("twemoji",), shifted_styles=("twemoji",)
    )
    with pytest.raises(ConfigError, match=word):
        check_world(world, library.classnames, library.styles)


def test_sites_of_one_name_are_refused() -> None:
    site = SiteWorld("a", ("twemoji",), {"street": 1.0})
    with pytest.raises(ConfigError, match="distinct names"):
        WorldConfig(seed=1, sites=(site, site))
