"""Watch a submitted job until FLARE calls it finished, whatever dies on the way."""

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from vltune_lab.jobs.simulate import RunFailedError

POLL_SECONDS = 1.0
PATIENCE_SECONDS = 60.0
"""A server that has not answered for so long is taken for dead."""
FAREWELL_SECONDS = 60.0
"""FLARE may wait 15 minutes for the last word of a site that is gone; so long is enough."""

log = logging.getLogger(__name__)


class Session(Protocol):
    """The part of FLARE's admin session that is used here."""

    def submit_job(self, job_definition_path: str) -> str:
        """Upload a job; returns its id."""

    def get_job_meta(self, job_id: str) -> dict[str, Any]:
        """What the server knows of a job, its status among it."""

    def get_system_info(self) -> Any:
        """Connected sites and the jobs that the server works on."""

    def download_job_result(self, job_id: str, destination: str) -> str:
        """Download a job's result; returns the folder."""

    def abort_job(self, job_id: str) -> None:
        """End a job."""

    def close(self) -> None:
        """Leave."""


class Watch:
    """Looks at one job from outside.

    Args:
        session: An open session.
        job_id: FLARE's.
        on_look: Called at every look, to follow the rounds.
    """

    def __init__(self, session: Session, job_id: str, on_look: Callable[[], None]) -> None:
        self.session = session
        self.job_id = job_id
        self.on_look = on_look
        self._answered = time.monotonic()
        self._was_at_work = False
        self._over_since: float | None = None

    def until_finished(self) -> str:
        """Wait; returns FLARE's final status.

        Raises:
            RunFailedError: The server is gone.
        """
        while True:
            status = self._status()
            self.on_look()
            if status.startswith("FINISHED"):
                return status
            if status and self._waits_for_the_dead():
                log.warning("job %s: a site is gone; its last word is not waited for", self.job_id)
                self.session.abort_job(self.job_id)
                self._over_since = None
            time.sleep(POLL_SECONDS)

    def _status(self) -> str:
        """FLARE's status; empty where the server does not answer just now."""
        try:
            status = str(self.session.get_job_meta(self.job_id).get("status", ""))
        except Exception as error:
            silent = time.monotonic() - self._answered
            if silent > PATIENCE_SECONDS:
                raise RunFailedError(
                    f"FLARE's server has not answered for {silent:.0f} s ({type(error).__name__}: "
                    f"{error}); job {self.job_id} was on it. Is it up?"
                ) from error
            return ""
        self._answered = time.monotonic()
        return status

    def _waits_for_the_dead(self) -> bool:
        """The server's part of the job is over, and still FLARE does not call it finished."""
        try:
            is_busy = is_at_work(self.session, self.job_id)
        except Exception:  # noqa: BLE001 - the next look will tell
            return False
        if is_busy:
            self._was_at_work, self._over_since = True, None
        elif self._was_at_work and self._over_since is None:
            self._over_since = time.monotonic()
        over = self._over_since
        return over is not None and time.monotonic() - over > FAREWELL_SECONDS


def is_at_work(session: Session, job_id: str) -> bool:
    """Whether the server has a process for the job."""
    return any(job.job_id == job_id for job in session.get_system_info().job_info)
