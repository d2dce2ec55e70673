"""What a user learns of a job whose server or sites are gone; FLARE's session is played here."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from vltune_lab.jobs import watch
from vltune_lab.jobs.simulate import RunFailedError
from vltune_lab.jobs.watch import Watch


class Played:
    """FLARE's side: what it answers at each look, one after the other; the last for ever."""

    def __init__(self, *looks: tuple[str, bool]) -> None:
        self.looks = list(looks)
        self.aborted: list[str] = []

    def get_job_meta(self, job_id: str) -> dict[str, Any]:
        status, self.at_work = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if status == "silent":
            raise ConnectionError("no answer")
        if self.aborted and status == "RUNNING":
            status = "FINISHED:ABORTED"
        return {"status": status}

    def get_system_info(self) -> Any:
        jobs = [SimpleNamespace(job_id="job")] if self.at_work else []
        return SimpleNamespace(job_info=jobs, client_info=[])

    def abort_job(self, job_id: str) -> None:
        self.aborted.append(job_id)


@pytest.fixture
def until_finished(monkeypatch: pytest.MonkeyPatch) -> Callable[[Played], str]:
    """Watch with patience of a fraction of a second."""
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(watch, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(watch, "FAREWELL_SECONDS", 0.1)
    return lambda session: Watch(session, "job", lambda: None).until_finished()  # type: ignore[arg-type]


def test_a_server_that_comes_back_is_waited_for(until_finished: Any) -> None:
    looks = (("RUNNING", True), ("silent", True), ("RUNNING", True), ("FINISHED:COMPLETED", False))
    session = Played(*looks)
    assert until_finished(session) == "FINISHED:COMPLETED"
    assert not session.aborted


def test_a_server_that_is_gone_ends_the_wait_with_the_cause(until_finished: Any) -> None:
    with pytest.raises(RunFailedError, match=r"not answered for .* \(ConnectionError: no answer\)"):
        until_finished(Played(("RUNNING", True), ("silent", True)))


def test_the_last_word_of_a_lost_site_is_not_waited_for(until_finished: Any) -> None:
    session = Played(("RUNNING", True), ("RUNNING", False))
    assert until_finished(session) == "FINISHED:ABORTED"
    assert session.aborted == ["job"]


def test_a_job_that_waits_for_its_turn_is_left_alone(until_finished: Any) -> None:
    waiting = [("SUBMITTED", False)] * 30
    session = Played(*waiting, ("RUNNING", True), ("FINISHED:COMPLETED", False))
    assert until_finished(session) == "FINISHED:COMPLETED"
    assert not session.aborted
