"""How a pool is dealt out to sites."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vltune.config import ConfigError, load_config
from vltune_lab.scenes.unified_world import (
    LEAST,
    UNIFIED_WORLD,
    Pool,
    UnifiedWorld,
    check_unified_world,
    deal,
    scene_mix,
    styles_of,
)

WORLD = UnifiedWorld(seed=3, sites=5)
LABELS = [f"answer {index % 7}" for index in range(700)]


def held(owners: list[int], count: int = 5) -> list[int]:
    return np.bincount(owners, minlength=count).tolist()


def test_the_packaged_world_is_read() -> None:
    world = load_config(UnifiedWorld, UNIFIED_WORLD)
    assert world == UnifiedWorld(seed=7)
    assert load_config(UnifiedWorld, UNIFIED_WORLD, ["tasks=[vqa, captions]"]).task_of(3) == (
        "captions"
    )


def test_iid_deals_equal_numbers() -> None:
    """703 items for five sites: 141, 141, 141, 140, 140."""
    owners = deal([*LABELS, "a", "b", "c"], replace(WORLD, partition="iid"), "vqa", "train")
    assert held(owners) == [141, 141, 141, 140, 140]


def skew(alpha: float) -> float:
    """Mean over labels of the richest site's share."""
    owners = deal(LABELS, replace(WORLD, alpha=alpha), "vqa", "train")
    by_label: dict[str, list[int]] = {}
    for label, owner in zip(LABELS, owners, strict=True):
        by_label.setdefault(label, []).append(owner)
    return float(np.mean([max(held(owners)) / len(owners) for owners in by_label.values()]))


def test_a_small_alpha_is_more_skewed() -> None:
    """Dir(100) gives each of five sites about a fifth of each answer."""
    assert skew(100.0) < 0.35
    assert skew(0.1) > skew(1.0) + 0.1 > 0.45


def test_each_site_gets_the_least_whatever_alpha() -> None:
    for seed in range(5):
        for part in ("train", "validation", "test"):
            world = UnifiedWorld(seed=seed, sites=16, alpha=0.02)
            owners = deal(LABELS[:160], world, "captions", part)
            assert min(held(owners, 16)) >= LEAST[part]


def test_shares_are_the_same_in_train_and_test() -> None:
    """A site that answers "red" in training answers it in its own test too."""
    world = replace(WORLD, alpha=0.05)
    most = []
    for part in ("train", "test"):
        owners = deal(["red"] * 200, world, "vqa", part)
        most.append(Counter(owners).most_common(1)[0][0])
    assert most[0] == most[1]


def test_only_sites_with_the_task_get_any() -> None:
    world = replace(WORLD, tasks=("vqa", "captions", "both"), partition="iid")
    assert set(deal(LABELS, world, "vqa", "train")) == {0, 2, 3}
    assert set(deal(LABELS, world, "captions", "train")) == {1, 2, 4}
    assert deal(LABELS, replace(world, tasks=("vqa",)), "captions", "train") == []


def test_site_partition_has_its_own_style_and_scenes() -> None:
    world = replace(WORLD, partition="site")
    assert styles_of(world, 0) != styles_of(world, 1)
    assert scene_mix(world, 0) != scene_mix(world, 1)
    assert set(scene_mix(world, None).values()) == {1.0}
    assert styles_of(world, None) == world.styles


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sites": 0}, "sites need distinct names"),
        ({"names": ("a", "a")}, "sites need distinct names"),
        ({"names": ("global",)}, "other than 'global'"),
        ({"tasks": ("draw",)}, "expected both, vqa or captions"),
        ({"tasks": ()}, "expected both, vqa or captions"),
        ({"alpha": 0}, "alpha must be above 0"),
        ({"disagreement": 1.5}, "disagreement must be in"),
        ({"image_size": 8}, "image_size must be in 32..512"),
        ({"prompts": 0}, "must be >= 1"),
        ({"pool": Pool(train=20)}, "pool.train is 20; 5 sites need at least 40"),
    ],
)
def test_worlds_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(WORLD, **change)


def test_too_few_items_and_unknown_styles() -> None:
    with pytest.raises(ConfigError, match=r"39 items of vqa for 5 sites in train; each needs 8"):
        deal(LABELS[:39], WORLD, "vqa", "train")
    with pytest.raises(ConfigError, match="styles: unknown"):
        check_unified_world(replace(WORLD, styles=("crayon",)), ("noto",))
