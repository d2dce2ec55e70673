"""The shipped caches are what the script writes, and what the job reads."""

import json
import shutil
from pathlib import Path

import pytest

from vltune.conditions import ConditionError, load_conditions
from vltune_lab.discovery.from_paper import PAPER_CONDITIONS
from vltune_lab.discovery.published import CACHES, SPRITES, rewrite_shipped

SHIPPED = ("coco-80", "embedded", "mlrsnet-60", "multi-scene-36", "nus-81", "voc-20")
MIDDLE = {"coco-80": 27, "mlrsnet-60": 26, "multi-scene-36": 19, "nus-81": 33, "voc-20": 10}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_caches_are_valid_and_say_where_they_come_from(name: str) -> None:
    path = CACHES / f"{name}.json"
    conditions = load_conditions(path)
    assert conditions.names == tuple(word for word, _gloss in PAPER_CONDITIONS)
    assert json.loads(path.read_text())["made_by"]["method"] == "taken from the paper"


@pytest.mark.parametrize(
    ("name", "size", "first", "middle", "last"),
    [
        ("coco-80", 80, "person", "tie", "toothbrush"),
        ("mlrsnet-60", 60, "airplane", "intersection", "wind turbine"),
        ("multi-scene-36", 36, "apron", "quarry", "sea"),
        ("nus-81", 81, "airport", "house", "zebra"),
        ("voc-20", 20, "aeroplane", "dining table", "tv monitor"),
    ],
)
def test_class_lists_are_the_published_ones(
    name: str, size: int, first: str, middle: str, last: str
) -> None:
    """The middle one, at a third of the list, tells an order from another with the same ends."""
    names = load_conditions(CACHES / f"{name}.json").classnames
    assert (len(names), names[0], names[-1]) == (size, first, last)
    assert len({word.casefold() for word in names}) == size
    assert names.index(middle) == MIDDLE[name]
    assert all(word == word.lower() and "_" not in word for word in names)


def test_alphabetical_lists_and_the_embedded_one() -> None:
    for name in ("nus-81", "mlrsnet-60"):
        names = list(load_conditions(CACHES / f"{name}.json").classnames)
        respelt = ["habor" if word == "harbor" and name == "mlrsnet-60" else word for word in names]
        assert respelt == sorted(respelt)
    assert len(load_conditions(CACHES / "embedded.json").classnames) >= 60


@pytest.mark.parametrize("name", ["mlrsnet-60", "multi-scene-36", "nus-81"])
def test_a_class_list_names_its_source_and_order(name: str) -> None:
    source = json.loads((CACHES / f"{name}.json").read_text())["made_by"]["class_list"]
    assert "Order: " in source
    assert ("not confirmed" in source) == (name == "nus-81")


def test_rewriting_changes_no_byte(tmp_path: Path) -> None:
    for name in SHIPPED:
        shutil.copy(CACHES / f"{name}.json", tmp_path)
    written = rewrite_shipped(tmp_path, SPRITES)
    assert {path.stem for path in written} == set(SHIPPED)
    for path in written:
        assert path.read_bytes() == (CACHES / path.name).read_bytes()


@pytest.mark.parametrize("edited", [False, True])
def test_caches_made_otherwise_or_edited_are_left_alone(tmp_path: Path, edited: bool) -> None:
    other = json.loads((CACHES / "voc-20.json").read_text())
    other["made_by"] |= {"edits": []} if edited else {"method": "language model"}
    (tmp_path / "other.json").write_text(json.dumps(other))
    before = (tmp_path / "other.json").read_bytes()
    assert rewrite_shipped(tmp_path, SPRITES) == [tmp_path / "embedded.json"]
    assert (tmp_path / "other.json").read_bytes() == before


def test_a_manifest_without_classes_is_named(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    with pytest.raises(ConditionError, match=r"manifest\.json: has no readable list 'classes'"):
        rewrite_shipped(tmp_path, manifest)
    manifest.write_text('{"styles": {}}')
    with pytest.raises(ConditionError, match="'classes'"):
        rewrite_shipped(tmp_path, manifest)
