"""One configuration for every judge."""

from pathlib import Path
from typing import Any

import pytest

from vltune.backbones.checkpoint import BackboneError
from vltune.backbones.judges import JudgeConfig, judge_hash, load_judge
from vltune.config import ConfigError, from_mapping

CLIP = {"model": "tiny", "weights": "/models/tiny"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": " "}, "judge.weights is empty"),
        ({"weights": "a", "rename": {"a": "b"}}, "are for `kind: detector`"),
        ({"weights": "a", "rules": {"confidence": 0.5}}, "are for `kind: detector`"),
        ({"weights": "a", "kind": "detector", "colours": "clip"}, "need each other"),
        ({"weights": "a", "kind": "detector", "clip": CLIP}, "need each other"),
        ({"weights": "a", "kind": "person"}, "expected one of compact, detector"),
    ],
)
def test_wrong_configurations(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(JudgeConfig, content, "job.yaml: judge")


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="no such folder"):
        load_judge(JudgeConfig(str(tmp_path / "none")))
    with pytest.raises(BackboneError, match="Give the folder of a judge"):
        load_judge(JudgeConfig(str(tmp_path)))
    with pytest.raises(BackboneError, match="cannot be loaded as an object detector"):
        load_judge(JudgeConfig(str(tmp_path), kind="detector"))


def test_a_judges_hash_is_that_of_settings_and_contents(tmp_path: Path) -> None:
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "card.json").write_text(f'"{name}"')
    first = judge_hash(JudgeConfig(str(tmp_path / "one")))
    assert judge_hash(JudgeConfig(str(tmp_path / "two"))) == first
    assert judge_hash(JudgeConfig(str(tmp_path / "one"), kind="detector")) != first
    (tmp_path / "two" / "model.safetensors").write_bytes(b"others")
    assert judge_hash(JudgeConfig(str(tmp_path / "two"))) != first
