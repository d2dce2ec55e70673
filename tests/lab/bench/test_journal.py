"""Rows survive the process that measured them."""

import json
from pathlib import Path

import pytest

from vltune.config import ConfigError
from vltune_lab.bench.journal import Journal, weights_hash


class Measurement:
    """Counts how often it is asked."""

    def __init__(self, value: float) -> None:
        self.value, self.calls = value, 0

    def __call__(self) -> dict[str, float]:
        self.calls += 1
        return {"accuracy": self.value}


def test_a_finished_row_is_read_and_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "worlds" / "rows.jsonl"
    first, again, other = Measurement(0.25), Measurement(0.5), Measurement(0.75)
    Journal(path).row({"method": "svd", "seed": 8}, first)

    later = Journal(path)

    assert later.row({"seed": 8, "method": "svd"}, again) == {"accuracy": 0.25}
    assert later.row({"method": "svd", "seed": 9}, other) == {"accuracy": 0.75}
    assert (first.calls, again.calls, other.calls) == (1, 0, 1)


def test_a_last_line_cut_short_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Journal(path).row({"seed": 8}, Measurement(0.25))
    Journal(path).row({"seed": 9}, Measurement(0.5))
    path.write_text(path.read_text()[:-10])

    journal = Journal(path)

    assert journal.row({"seed": 8}, Measurement(1.0)) == {"accuracy": 0.25}
    assert journal.row({"seed": 9}, Measurement(0.75)) == {"accuracy": 0.75}
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 2


def test_a_damaged_line_is_refused_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Journal(path).row({"seed": 8}, Measurement(0.25))
    path.write_text('{"row": {}}\n' + path.read_text())

    with pytest.raises(ConfigError, match=r"rows\.jsonl, line 1: no row"):
        Journal(path)


def test_the_hash_of_weights_is_that_of_what_figures_follow_from(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"one")
    (folder / "config.json").write_text("{}")
    first = weights_hash(folder)
    (folder / "README.md").write_text("a card")
    assert weights_hash(str(folder)) == first
    (folder / "model.safetensors").write_bytes(b"two")
    assert weights_hash(folder) != first
    assert weights_hash(folder / "config.json") != first  # a single file has one too
    assert weights_hash("Salesforce/blip-vqa-base") == "Salesforce/blip-vqa-base"
