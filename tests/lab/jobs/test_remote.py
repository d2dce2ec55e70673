"""What is fetched, told and refused around a FLARE job; FLARE's session is played here."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vltune.config import ConfigError
from vltune.files import write_json_atomic
from vltune_lab.jobs.remote import (
    SUBMITTED_FILE,
    cause,
    fetch,
    fetch_earlier,
    late_sites,
    submitted_jobs,
)


class Played:
    """FLARE's side: one job with a status, archived or not, and two connected sites."""

    def __init__(self, status: str, *, is_archived: bool = True, is_at_work: bool = False) -> None:
        self.status, self.is_archived, self.is_at_work = status, is_archived, is_at_work
        self.downloads = 0

    def get_job_meta(self, job_id: str) -> dict[str, Any]:
        return {"status": self.status}

    def get_system_info(self) -> Any:
        sites = [SimpleNamespace(name=name) for name in ("site-1", "site-2")]
        jobs = [SimpleNamespace(job_id="job")] if self.is_at_work else []
        return SimpleNamespace(client_info=sites, job_info=jobs)

    def abort_job(self, job_id: str) -> None:
        raise RuntimeError("job is not running")

    def download_job_result(self, job_id: str, destination: str) -> str:
        self.downloads += 1
        if not self.is_archived:
            raise RuntimeError("no such job")
        folder = Path(destination) / job_id / "workspace/app_server"
        write_json_atomic(folder / "rounds.json", {"completed_rounds": 2})
        return str(folder)


def at_server(folder: Path) -> Path:
    """A server whose process was killed: its folder is as it was."""
    write_json_atomic(folder / "job/app_server/rounds.json", {"completed_rounds": 3})
    return folder


def test_a_download_is_found_and_not_repeated(tmp_path: Path) -> None:
    session: Any = Played("FINISHED:COMPLETED")
    for _ in range(2):
        found = fetch(session, "job", tmp_path, None)
        assert found is not None
        assert json.loads((found / "rounds.json").read_text())["completed_rounds"] == 2
    assert session.downloads == 1


def test_what_was_never_archived_is_read_where_the_server_is_at_hand(tmp_path: Path) -> None:
    session: Any = Played("FINISHED:ABANDONED", is_archived=False)
    assert fetch(session, "job", tmp_path / "one", None) is None
    found = fetch(session, "job", tmp_path / "two", at_server(tmp_path / "server"))
    assert found is not None
    assert json.loads((found / "rounds.json").read_text())["completed_rounds"] == 3


@pytest.mark.parametrize("status", ["SUBMITTED", "RUNNING"])
def test_a_run_whose_job_still_runs_is_not_resumed(tmp_path: Path, status: str) -> None:
    write_json_atomic(tmp_path / SUBMITTED_FILE, ["job"])
    with pytest.raises(ConfigError, match=f"job job of this run is {status}.*abort it"):
        fetch_earlier(Played(status, is_at_work=True), tmp_path, None)  # type: ignore[arg-type]


def test_a_restarted_server_calls_its_old_job_running_for_ever(tmp_path: Path) -> None:
    """FLARE 2.9.0: no process works on the job, and it cannot be aborted either."""
    write_json_atomic(tmp_path / SUBMITTED_FILE, ["job"])
    session: Any = Played("RUNNING", is_archived=False)
    fetch_earlier(session, tmp_path, at_server(tmp_path / "server"))
    assert list(tmp_path.glob("job/**/rounds.json"))


def test_a_command_that_was_interrupted_is_made_up_for(tmp_path: Path) -> None:
    write_json_atomic(tmp_path / SUBMITTED_FILE, ["job"])
    assert submitted_jobs(tmp_path) == ["job"]
    fetch_earlier(Played("FINISHED:ABORTED"), tmp_path, None)  # type: ignore[arg-type]
    assert list(tmp_path.glob("job/**/rounds.json"))


def test_the_cause_is_the_runs_own_or_that_there_was_none() -> None:
    running = {"status": "running", "completed_rounds": 2}
    assert "without a word after 2 complete rounds" in cause(running)
    assert cause({"status": "failed", "reason": "no quorum"}) == "no quorum"


def test_a_site_that_came_too_late_is_named() -> None:
    session: Any = Played("FINISHED:COMPLETED")
    assert late_sites(session, {"sites": {"site-1": {}}, "left_out": {}}) == ["site-2"]
    assert late_sites(session, {"sites": {"site-1": {}}, "left_out": {"site-2": "why"}}) == []
