import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from vltune.data.multilabel import load_coco_instances, read_image
from vltune.files import OutputError
from vltune.site_config import read_site_config
from vltune_lab.scenes.library import AssetError, load_library
from vltune_lab.scenes.make import make_world
from vltune_lab.scenes.render import HELD_OUT_PANORAMAS, panoramas_of
from vltune_lab.scenes.world import SiteWorld, WorldConfig

WORLD = WorldConfig(
    seed=11,
    sites=(
        SiteWorld(
            "north", ("emojione1",), {"street": 1.0, "cafe": 1.0}, train=24, validation=6, test=5
        ),
    ),
    test=10,
    shifted=4,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    assert make_world(WORLD, folder).num_images == 49
    return folder


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_same_seed_same_bytes(made: Path, tmp_path: Path) -> None:
    make_world(WORLD, tmp_path / "again")
    assert digest(tmp_path / "again") == digest(made)


def test_the_production_loader_reads_it_back(made: Path) -> None:
    site = read_site_config(made / "north" / "vltune_site.yaml")
    classnames = load_library(styles=("emojione1",)).classnames
    samples = load_coco_instances(
        site.train.annotations, site.train.images, classnames, unlabelled=site.unlabelled
    )
    assert len(samples.image_paths) == 24
    assert read_image(samples.image_paths[0]).size == (64, 64)
    truth = json.loads(site.train.annotations.read_text())
    names = {entry["id"]: entry["name"] for entry in truth["categories"]}
    for row, image in enumerate(truth["images"]):
        wanted = {
            names[a["category_id"]] for a in truth["annotations"] if a["image_id"] == image["id"]
        }
        present = {classnames[column] for column in np.flatnonzero(samples.labels[row] == 1)}
        assert present == wanted
    unknown = {classnames[column] for column in np.flatnonzero((samples.labels == -1).any(axis=0))}
    assert unknown == set(site.unlabelled)
    assert "zebra" in unknown


def test_making_it_twice_does_nothing_and_another_world_is_refused(made: Path) -> None:
    before = digest(made)
    assert make_world(WORLD, made).was_there
    assert digest(made) == before
    with pytest.raises(OutputError, match="another world"):
        make_world(WorldConfig(seed=12, sites=WORLD.sites), made)


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep")
    with pytest.raises(OutputError, match="not empty"):
        make_world(WORLD, tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "keep"


def test_damaged_or_missing_assets_are_named(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="full clone"):
        load_library(tmp_path)
    with pytest.raises(AssetError, match="crayon"):
        load_library(styles=("crayon",))


def test_no_panorama_is_for_training_and_for_testing() -> None:
    """Forest, bedroom and sky have one panorama each and show it in both."""
    library = load_library(styles=("twemoji",), verify=False)
    train, test = set(), set()
    for scene, panoramas in library.backgrounds.items():
        theirs = panoramas_of(library, scene, is_held_out=False)
        ours = panoramas_of(library, scene, is_held_out=True)
        if len(panoramas) == 1:
            continue
        assert not set(ours) & set(theirs), scene
        train |= set(theirs)
        test |= set(ours)
    assert test == HELD_OUT_PANORAMAS
    assert not train & test
