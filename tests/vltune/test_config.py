import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from vltune.config import ConfigError, apply_overrides, from_mapping, load_config, to_mapping


@dataclass(frozen=True)
class Inner:
    rank: int
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    rate: float
    inner: Inner = field(default_factory=lambda: Inner(1))
    names: tuple[str, ...] = ()
    place: Path = Path("here")
    limits: dict[str, float] = field(default_factory=dict)
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError("rate must be >= 0")


def test_yaml_becomes_nested_dataclasses(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        "rate: 1e-3\ninner: {rank: 4, kind: b}\nnames: [x, y]\nplace: /a\nlimits: {q: 2}\n"
    )
    config = load_config(Outer, path, ["inner.rank=8", "threads=3"])
    assert config == Outer(0.001, Inner(8, "b"), ("x", "y"), Path("/a"), {"q": 2.0}, 3)


def test_mapping_and_back_is_the_same() -> None:
    config = Outer(0.5, Inner(3, "b"), ("x",), Path("/a"), {"q": math.inf}, None)
    assert from_mapping(Outer, to_mapping(config), "test") == config


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"rate": 1.0, "ratee": 2}, ["unknown key ratee", "known keys: rate"]),
        ({}, ["missing key rate"]),
        ({"rate": "fast"}, ["rate: expected a number", "'fast'"]),
        ({"rate": True}, ["rate: expected float", "True"]),
        ({"rate": float("nan")}, ["NaN"]),
        ({"rate": -1.0}, ["rate must be >= 0"]),
        ({"rate": 1, "inner": {"rank": 1.5}}, ["inner: rank: expected int", "1.5"]),
        ({"rate": 1, "inner": {"rank": 1, "kind": "c"}}, ["expected one of a, b", "'c'"]),
        ({"rate": 1, "inner": 3}, ["inner: expected a mapping", "3"]),
        ({"rate": 1, "names": "xy"}, ["names: expected a list", "'xy'"]),
        ({"rate": 1, "names": ["x", 3]}, ["names[1]: expected str", "3"]),
        ({"rate": 1, "threads": "two"}, ["threads: expected int", "'two'"]),
        ({"rate": 1, "limits": {"q": "x"}}, ["limits.q"]),
    ],
)
def test_wrong_values_name_source_key_and_value(mapping: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        from_mapping(Outer, mapping, "site.yaml")
    for word in ["site.yaml", *words]:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("text", "word"),
    [(None, "no such file"), ("- 1", "mapping"), ("a: [", "cannot be read as YAML")],
)
def test_unreadable_file_is_named(tmp_path: Path, text: str | None, word: str) -> None:
    path = tmp_path / "job.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=word) as error:
        load_config(Outer, path)
    assert str(path) in str(error.value)


def test_overrides_do_not_change_their_input_and_refuse_nonsense() -> None:
    original = {"a": {"b": 1}, "c": 2}
    assert apply_overrides(original, ["a.b=[1, 2]", "d.e=x"]) == {
        "a": {"b": [1, 2]},
        "c": 2,
        "d": {"e": "x"},
    }
    assert original == {"a": {"b": 1}, "c": 2}
    for wrong in ("a", "=1", "c.d=1"):
        with pytest.raises(ConfigError, match="override"):
            apply_overrides(original, [wrong])
