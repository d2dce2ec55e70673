import json
from pathlib import Path

import pytest

from vltune.config import ConfigError
from vltune.site_policy import CLASSES, allow_classes

FLARE_S = "nvflare.app_common.filters.exclude_vars.ExcludeVars"


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    (tmp_path / "local").mkdir()
    content = {"format_version": 2, "class_allow_list": [FLARE_S]}
    (tmp_path / "local/resources.json.default").write_text(json.dumps(content))
    return tmp_path


def test_the_default_is_kept_and_the_site_gets_a_file_of_its_own(kit: Path) -> None:
    before = (kit / "local/resources.json.default").read_text()
    assert allow_classes(kit) == list(CLASSES)
    written = json.loads((kit / "local/resources.json").read_text())
    assert written == {"format_version": 2, "class_allow_list": [FLARE_S, *CLASSES]}
    assert (kit / "local/resources.json.default").read_text() == before


def test_what_is_there_already_stays(kit: Path) -> None:
    own = {"class_allow_list": [CLASSES[2], FLARE_S], "snapshot": 1}
    (kit / "local/resources.json").write_text(json.dumps(own))
    assert allow_classes(kit) == [name for name in CLASSES if name != CLASSES[2]]
    written = json.loads((kit / "local/resources.json").read_text())
    assert written["class_allow_list"][:2] == [CLASSES[2], FLARE_S]
    assert written["snapshot"] == 1
    assert allow_classes(kit) == []


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"class_allow_list": "*"}'])
def test_damaged_files_are_named(kit: Path, content: str) -> None:
    (kit / "local/resources.json").write_text(content)
    with pytest.raises(ConfigError, match=r"resources\.json"):
        allow_classes(kit)


def test_no_startup_kit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="startup"):
        allow_classes(tmp_path)
