"""Run an exported job on a started FLARE system (POC or production) and download its results."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from vltune.config import ConfigError, read_mapping
from vltune.flare.run_log import METRICS_FILE, STATE_FILE
from vltune_lab.jobs.follow import Follower, Record
from vltune_lab.jobs.simulate import RunFailedError

POLL_SECONDS = 1.0
DEFAULT_USER = "admin@nvidia.com"


class Session(Protocol):
    """The part of FLARE's admin session that is used here."""

    def submit_job(self, job_definition_path: str) -> str:
        """Upload a job; returns its id."""

    def get_job_meta(self, job_id: str) -> dict[str, Any]:
        """What the server knows of a job, its status among it."""

    def download_job_result(self, job_id: str, destination: str) -> str:
        """Download a job's result; returns the folder."""

    def abort_job(self, job_id: str) -> None:
        """End a job."""

    def close(self) -> None:
        """Leave."""


def open_session(
    environment: str, startup_kit: Path | None, user: str
) -> tuple[Session, Path | None]:
    """Log in to a running POC or to a production system.

    Args:
        environment: `poc` or `prod`.
        startup_kit: The admin's startup kit; in POC found by itself.
        user: Admin user.

    Returns:
        The session, and the server's folder where it is on this machine (POC).

    Raises:
        ConfigError: No startup kit, or nobody answers.
    """
    from nvflare.fuel.flare_api.flare_api import new_secure_session

    server = None
    if environment == "poc" and startup_kit is None:
        folder = poc_folder()
        startup_kit, server = folder / user, folder / "server"
    if startup_kit is None or not startup_kit.is_dir():
        raise ConfigError(
            f"no startup kit at {startup_kit}. For POC: nvflare poc prepare, nvflare poc start; "
            "elsewhere give --startup-kit the admin's folder."
        )
    try:
        session: Session = new_secure_session(user, str(startup_kit), timeout=15.0)
    except Exception as error:
        raise ConfigError(
            f"no FLARE server answers ({error}). Is it started? For POC: nvflare poc start."
        ) from error
    return session, server


def poc_folder() -> Path:
    """Where the prepared POC has its server, sites and admins; its project may have any name.

    Raises:
        ConfigError: No POC was prepared in `NVFLARE_POC_WORKSPACE`.
    """
    from nvflare.tool.poc.poc_commands import get_poc_workspace, get_prod_dir

    workspace = Path(get_poc_workspace())
    project = workspace / "project.yml"
    if not project.is_file():
        raise ConfigError(
            f"no POC at {workspace}. Run nvflare poc prepare and nvflare poc start, with the same "
            "NVFLARE_POC_WORKSPACE as here (poc_workspace/README.md)."
        )
    return Path(get_prod_dir(str(workspace), read_mapping(project).get("name")))


def run_remote(
    session: Session,
    job_folder: Path,
    destination: Path,
    *,
    server: Path | None,
    on_round: Callable[[Record], None],
    on_submit: Callable[[str], None],
) -> Path:
    """Submit, wait, download; returns the downloaded folder of the server.

    Args:
        session: An open session; it is left open.
        job_folder: The export.
        destination: Where the download goes.
        server: The server's folder where it can be read, to follow the rounds.
        on_round: Called with each round's record.
        on_submit: Called with FLARE's job id.

    Raises:
        RunFailedError: The job did not complete.
    """
    job_id = session.submit_job(str(job_folder.absolute()))
    on_submit(job_id)
    follower = None
    if server is not None:
        follower = Follower(server / job_id / "app_server" / METRICS_FILE, on_round)
    try:
        status = _wait(session, job_id, follower)
    except KeyboardInterrupt:
        session.abort_job(job_id)
        raise
    location = session.download_job_result(job_id, str(destination))
    found = sorted(Path(location).rglob(STATE_FILE)) if location else []
    if not found:
        raise RunFailedError(f"job {job_id} ended with {status}; its download holds no results")
    if status != "FINISHED:COMPLETED":
        reason = json.loads(found[0].read_text()).get("reason")
        raise RunFailedError(f"job {job_id} ended with {status}: {reason}. Downloaded: {location}")
    return found[0].parent


def _wait(session: Session, job_id: str, follower: Follower | None) -> str:
    while True:
        status = str(session.get_job_meta(job_id).get("status", ""))
        if follower is not None:
            follower.poll()
        if status.startswith("FINISHED"):
            return status
        time.sleep(POLL_SECONDS)
