import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vltune.algorithms.answer_data import load_answer_data
from vltune.data.preference import load_preference
from vltune.files import OutputError
from vltune.site_config import read_site_config, require_answers
from vltune.text_metrics import normalise_answer
from vltune_lab.scenes.house_styles import PLAIN, load_house_styles, unsay, vocabulary
from vltune_lab.scenes.library import load_library
from vltune_lab.scenes.make import make_world
from vltune_lab.scenes.make_preference import make_preference_world
from vltune_lab.scenes.preference_world import PreferenceSite, PreferenceWorld
from vltune_lab.scenes.world import SiteWorld, WorldConfig, load_priors

SCENES = {"street": 1.0, "park": 2.0}
pytestmark = pytest.mark.slow
WORLD = PreferenceWorld(
    seed=11,
    image_size=48,
    sites=(
        PreferenceSite("north", "harbour", ("twemoji",), SCENES, 14, 6, 5),
        PreferenceSite("south", "deutsch", ("emojione1",), SCENES, 10, 4, 3),
    ),
    test=7,
)
STYLES = load_house_styles()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preference")
    assert make_preference_world(WORLD, folder).num_images == 14 + 6 + 5 + 10 + 4 + 3 + 7
    return folder


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def about(row: dict[str, Any]) -> dict[str, str]:
    return json.loads(row["origin_split"])


def test_same_seed_same_bytes_and_another_world_is_refused(made: Path, tmp_path: Path) -> None:
    make_preference_world(WORLD, tmp_path / "again")
    assert digest(tmp_path / "again") == digest(made)
    assert make_preference_world(WORLD, made).was_there
    with pytest.raises(OutputError, match="another world"):
        make_preference_world(replace(WORLD, seed=12), made)
    with pytest.raises(OutputError, match="another world"):
        make_world(WorldConfig(1, (SiteWorld("north", ("twemoji",), SCENES),)), made)


def test_the_production_reader_takes_it_and_no_image_is_on_two_sides(made: Path) -> None:
    seen: set[bytes] = set()
    for site in WORLD.sites:
        config = require_answers(read_site_config(made / site.name / "vltune_site.yaml"))
        data = load_answer_data(config)
        assert data.test is not None
        for part, wanted in ((data.train, site.train), (data.validation, site.validation),
                             (data.test, site.test)):  # fmt: skip
            assert len(part.images) == wanted
            assert not part.num_duplicates
            assert len(part.records) > 2 * wanted
            assert not seen & set(part.digests)
            seen |= set(part.digests)
    shared = {load_preference([path]).digests for path in (made / "global/test").glob("*.jsonl")}
    assert len(shared) == 1
    assert not seen & set(*shared)


def test_answers_are_the_plain_ones_in_each_sites_words(made: Path) -> None:
    words = vocabulary(load_library(verify=False).classnames, tuple(load_priors().scenes))
    for site in WORLD.sites:
        for part in ("train", "validation", "test"):
            for row in rows(made / site.name / f"{part}.jsonl"):
                facts = about(row)
                house = STYLES[site.house_style]
                assert facts["house_style"] == site.house_style
                assert unsay(facts["kind"], row["chosen"], house, words) == facts["answer"]
                said = unsay(facts["kind"], row["rejected"], house, words)
                if facts["flaw"] == "other style":
                    assert said is None
                else:
                    assert said not in (None, facts["answer"])


def test_the_same_image_and_question_has_another_right_answer_in_each_house(made: Path) -> None:
    houses = {path.stem: rows(path) for path in (made / "global/test").glob("*.jsonl")}
    assert set(houses) == {PLAIN, "harbour", "deutsch"}
    for group in zip(*houses.values(), strict=True):
        assert len({(row["image"], row["question"]) for row in group}) == 1
        assert len({about(row)["answer"] for row in group}) == 1
        assert len({normalise_answer(row["chosen"]) for row in group}) == 3
    plain = houses[PLAIN]
    assert all(row["chosen"] == about(row)["answer"] for row in plain)


def test_iid_sites_say_it_alike(tmp_path: Path) -> None:
    world = replace(WORLD, partition="iid", common_style="clinic", test=2)
    make_preference_world(world, tmp_path)
    for site in WORLD.sites:
        found = rows(tmp_path / site.name / "train.jsonl")
        assert {about(row)["house_style"] for row in found} == {"clinic"}
        assert {about(row)["style"] for row in found} == {"twemoji", "emojione1"}
    assert {path.stem for path in (tmp_path / "global/test").glob("*.jsonl")} == {
        *("plain", "harbour", "deutsch", "clinic")
    }


def test_provenance_names_every_drawing_and_licence(made: Path) -> None:
    world = json.loads((made / "world.json").read_text())
    drawings = world["provenance"]["drawings"]
    assert set(drawings) == {"twemoji", "emojione1", "notov1"}
    assert drawings["emojione1"]["licence"] == "CC-BY-SA-4.0"
    assert world["provenance"]["backgrounds"]["licence"] == "CC0-1.0"
    assert world["task"] == "preference"
