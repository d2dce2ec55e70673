from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vltune.config import ConfigError, from_mapping, load_config, read_mapping
from vltune_lab.scenes.preference_world import (
    PREFERENCE_WORLD,
    PreferenceWorld,
    asked_splits,
    check_preference_world,
    global_split,
)
from vltune_lab.scenes.questions import KINDS
from vltune_lab.scenes.world import load_priors

WORLD = load_config(PreferenceWorld, PREFERENCE_WORLD)
PLACES = tuple(load_priors().scenes)
DRAWN = ("twemoji", "notov1", "emojione1")


def mixes(world: PreferenceWorld, key: str) -> np.ndarray:
    """(S, entries), rows sum to 1, of the training parts."""
    rows = []
    for parts in asked_splits(world).values():
        source = parts[0].kinds if key == "kinds" else parts[0].split.scenes
        values = np.array([source.get(name, 0.0) for name in (KINDS if key == "kinds" else PLACES)])
        rows.append(values / values.sum())
    return np.array(rows)


def test_the_packaged_world_is_valid() -> None:
    check_preference_world(WORLD, PLACES, DRAWN)
    assert len({site.house_style for site in WORLD.sites}) == len(WORLD.sites) == 4


def test_house_style_sites_differ_in_looks_scenes_and_words() -> None:
    dealt = asked_splits(WORLD)
    for site in WORLD.sites:
        train, validation, test = dealt[site.name]
        assert {part.house_style for part in dealt[site.name]} == {site.house_style}
        assert train.split.styles == validation.split.styles == test.split.styles == site.styles
        assert train.split.scenes == site.scenes
        assert [part.split.drawings for part in (train, validation, test)] == [
            "train",
            "train",
            "held_out",
        ]
        assert test.split.is_held_out
    assert len({part.split.name for parts in dealt.values() for part in parts}) == 12


def test_iid_sites_draw_from_one_distribution() -> None:
    dealt = asked_splits(replace(WORLD, partition="iid"))
    parts = [part for group in dealt.values() for part in group]
    assert {part.house_style for part in parts} == {WORLD.common_style}
    assert {part.split.styles for part in parts} == {tuple(sorted(DRAWN))}
    assert all(part.split.scenes == parts[0].split.scenes for part in parts)
    assert set(parts[0].split.scenes) == set(PLACES)


@pytest.mark.parametrize("key", ["kinds", "scenes"])
def test_a_small_alpha_skews_and_a_large_one_does_not(key: str) -> None:
    """Mean total variation between a site's mix and the mean of all, over ten seeds."""

    def skew(alpha: float) -> float:
        distances = []
        for seed in range(10):
            world = replace(WORLD, partition="dirichlet", alpha=alpha, seed=seed)
            rows = mixes(world, key)
            distances.append(0.5 * np.abs(rows - rows.mean(axis=0)).sum(axis=1).mean())
        return float(np.mean(distances))

    assert skew(1000.0) < 0.03 < skew(0.5) < skew(0.1)
    assert skew(0.1) > 0.5


def test_dirichlet_depends_on_seed_and_alpha_only() -> None:
    world = replace(WORLD, partition="dirichlet")
    assert asked_splits(world) == asked_splits(replace(world, test=3))
    assert asked_splits(world) != asked_splits(replace(world, seed=8))
    shares = mixes(replace(world, alpha=1e-3), "scenes")
    assert np.isfinite(shares).all()


def test_the_global_set_holds_every_scene() -> None:
    split, kinds = global_split(WORLD)
    assert set(split.scenes) == set(PLACES)
    assert (split.is_held_out, split.styles, tuple(kinds)) == (True, DRAWN, KINDS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"partition": "random"}, "partition: expected one of house_style, dirichlet, iid"),
        ({"alpha": 0}, "alpha must be above 0"),
        ({"sites": []}, "distinct names"),
        ({"other_style": 2}, r"other_style must be in \[0, 1\]"),
        ({"questions_per_image": 0}, "must be >= 1"),
        ({"kinds": {"count": 0}}, "kinds: weights"),
        ({"image_size": 8}, r"32\.\.512"),
        ({"spurious": 1}, "unknown key spurious"),
    ],
)
def test_wrong_worlds(change: dict[str, Any], message: str) -> None:
    mapping = read_mapping(PREFERENCE_WORLD) | change
    with pytest.raises(ConfigError, match=message):
        from_mapping(PreferenceWorld, mapping, "world.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "global"}, "other than 'global'"),
        ({"styles": []}, "needs styles"),
        ({"test": 0}, "test >= 1"),
        ({"scenes": {"street": 0}}, "not all 0"),
    ],
)
def test_wrong_sites(change: dict[str, Any], message: str) -> None:
    mapping = read_mapping(PREFERENCE_WORLD)
    mapping["sites"][1] |= change
    with pytest.raises(ConfigError, match=message):
        from_mapping(PreferenceWorld, mapping, "world.yaml")


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ({"house_style": "piratical"}, r"site 'site-1': house_style: unknown \['piratical'\]"),
        ({"scenes": {"moon": 1.0}}, r"site 'site-1': scenes: unknown \['moon'\]"),
        ({"styles": ("crayon",)}, r"site 'site-1': styles: unknown \['crayon'\]"),
    ],
)
def test_what_does_not_exist_is_named(site: dict[str, Any], message: str) -> None:
    sites = (replace(WORLD.sites[0], **site), *WORLD.sites[1:])
    with pytest.raises(ConfigError, match=message):
        check_preference_world(replace(WORLD, sites=sites), PLACES, DRAWN)
    with pytest.raises(ConfigError, match=r"kinds: unknown \['size'\]"):
        check_preference_world(replace(WORLD, kinds={"size": 1.0}), PLACES, DRAWN)
