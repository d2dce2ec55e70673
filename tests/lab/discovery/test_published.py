"""The shipped caches are what the script writes, and what the job reads."""

import json
import shutil
from pathlib import Path

import pytest

from vltune.conditions import ConditionError, load_conditions
from vltune_lab.discovery.published import CACHES, PAPER_CONDITIONS, SPRITES, rewrite_shipped

SHIPPED = ("coco-80", "embedded", "voc-20")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_caches_are_valid_and_say_where_they_come_from(name: str) -> None:
    path = CACHES / f"{name}.json"
    conditions = load_conditions(path)
    assert conditions.names == tuple(word for word, _gloss in PAPER_CONDITIONS)
    assert json.loads(path.read_text())["made_by"]["method"] == "taken from the paper"


def test_class_lists_have_the_published_sizes() -> None:
    coco = load_conditions(CACHES / "coco-80.json").classnames
    assert (len(coco), coco[0], coco[79]) == (80, "person", "toothbrush")
    voc = load_conditions(CACHES / "voc-20.json").classnames
    assert (len(voc), voc[0], voc[19]) == (20, "aeroplane", "tv monitor")
    assert len(load_conditions(CACHES / "embedded.json").classnames) >= 60


def test_rewriting_changes_no_byte(tmp_path: Path) -> None:
    for name in SHIPPED:
        shutil.copy(CACHES / f"{name}.json", tmp_path)
    written = rewrite_shipped(tmp_path, SPRITES)
    assert {path.stem for path in written} == set(SHIPPED)
    for path in written:
        assert path.read_bytes() == (CACHES / path.name).read_bytes()


def test_caches_made_otherwise_are_left_alone(tmp_path: Path) -> None:
    other = json.loads((CACHES / "voc-20.json").read_text())
    other["made_by"]["method"] = "language model"
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
