import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))

from exported_jobs import write_job

from vltune.doctor_findings import DoctorError
from vltune.doctor_job import find_builder, read_exported_job

JOB: dict[str, Any] = {"name": "toy", "participant": "os.path.join", "classnames": ["cat"]}


def test_every_part_is_read(tmp_path: Path) -> None:
    exported = read_exported_job(write_job(tmp_path / "toy", JOB, round_timeout_seconds=5.0))
    assert exported.job == {"name": "toy", "classnames": ["cat"]}
    assert exported.participant == "os.path.join"
    assert (exported.round_timeout_seconds, exported.prepare_timeout_seconds) == (5.0, 3600.0)
    assert len(exported.facts["class_list"]) == 16
    assert exported.versions["vltune"]
    assert exported.code is None
    assert exported.resume_adapter is None


def test_older_export_or_none_of_the_servers_files(tmp_path: Path) -> None:
    folder = write_job(tmp_path / "toy", JOB)
    for name in ("vltune_versions.json", "config_fed_server.json"):
        (folder / "app" / "config" / name).unlink()
    exported = read_exported_job(folder)
    assert (exported.versions, exported.round_timeout_seconds, exported.facts) == ({}, None, {})


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_damaged_job(tmp_path: Path, content: str) -> None:
    folder = write_job(tmp_path / "toy", JOB)
    (folder / "app/config/vltune_job.json").write_text(content, encoding="latin-1")
    with pytest.raises(DoctorError, match=r"vltune_job\.json.*Export the job again"):
        read_exported_job(folder)


def test_no_participant(tmp_path: Path) -> None:
    folder = write_job(tmp_path / "toy", JOB)
    (folder / "app/config/config_fed_client.json").write_text(json.dumps({"executors": [{}]}))
    with pytest.raises(DoctorError, match="names no participant"):
        read_exported_job(folder)


@pytest.mark.parametrize("dotted", ["", "join", "no_such_module.build", "os.path.no_such"])
def test_no_such_builder(dotted: str) -> None:
    with pytest.raises(DoctorError, match="cannot be imported"):
        find_builder(dotted)
