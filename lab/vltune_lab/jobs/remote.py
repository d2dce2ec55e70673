"""Run an exported job on a started FLARE system (POC or production) and download its results."""

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vltune.config import ConfigError, read_mapping
from vltune.files import write_json_atomic
from vltune.flare.run_log import METRICS_FILE, STATE_FILE
from vltune_lab.jobs.follow import Follower, Record
from vltune_lab.jobs.simulate import RunFailedError
from vltune_lab.jobs.watch import Session, Watch, is_at_work

SUBMITTED_FILE = "submitted.json"
"""In a run's folder for FLARE: the ids of its jobs, so that what they left can be fetched later."""
COMPLETED = "FINISHED:COMPLETED"
DEFAULT_USER = "admin@nvidia.com"


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

    # What goes wrong is told in our own words; FLARE's log would repeat it every second.
    logging.getLogger("nvflare").addHandler(logging.NullHandler())
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
    say: Callable[[str], None],
) -> Path:
    """Submit, wait, download; returns the downloaded folder of the server.

    Args:
        session: An open session; it is left open.
        job_folder: The export.
        destination: Where the download goes.
        server: The server's folder where it can be read, to follow the rounds.
        on_round: Called with each round's record.
        say: Called with what the user should know: FLARE's job id, sites that came too late.

    Raises:
        RunFailedError: The job did not complete; the message is the cause.
    """
    job_id = session.submit_job(str(job_folder.absolute()))
    write_json_atomic(destination / SUBMITTED_FILE, [*submitted_jobs(destination), job_id])
    say(f"FLARE job {job_id}")
    follower = None
    if server is not None:
        follower = Follower(server / job_id / "app_server" / METRICS_FILE, on_round)
    watch = Watch(session, job_id, follower.poll if follower else lambda: None)
    try:
        status = watch.until_finished()
    except KeyboardInterrupt:
        session.abort_job(job_id)
        raise
    found = fetch(session, job_id, destination, server)
    if found is None:
        raise RunFailedError(f"job {job_id} ended with {status}; its download holds no results")
    state = json.loads((found / STATE_FILE).read_text())
    if state["status"] != "completed":
        raise RunFailedError(f"{cause(state)}\nFLARE: job {job_id} {status}. Downloaded: {found}")
    if status != COMPLETED:
        say(f"FLARE calls the job {status}, since a site was lost; the run itself is complete")
    for site in late_sites(session, state):
        say(f"{site} connected after the start and did not take part; it joins with --resume")
    return found


def submitted_jobs(destination: Path) -> list[str]:
    """FLARE's ids of the jobs of a run."""
    path = destination / SUBMITTED_FILE
    jobs: list[str] = json.loads(path.read_text()) if path.exists() else []
    return jobs


def fetch(session: Session, job_id: str, destination: Path, server: Path | None) -> Path | None:
    """Download a job's result; returns the server's folder in it, or None where nothing is left.

    A server that was killed has archived nothing: its own folder is read where that is possible.
    """
    home = destination / job_id
    if not home.exists():
        try:
            session.download_job_result(job_id, str(destination))
        except Exception:  # noqa: BLE001 - FLARE deleted or never archived it
            home.mkdir(parents=True, exist_ok=True)
    left = server / job_id / "app_server" if server else None
    if left is not None and left.is_dir() and not list(home.rglob(STATE_FILE)):
        shutil.copytree(left, home / "left_at_server", dirs_exist_ok=True)
    return next((path.parent for path in sorted(home.rglob(STATE_FILE))), None)


def fetch_earlier(session: Session, destination: Path, server: Path | None) -> None:
    """Fetch what earlier jobs of a run left at the server.

    Raises:
        ConfigError: One of them still runs.
    """
    for job_id in submitted_jobs(destination):
        if (destination / job_id).exists():
            continue
        try:
            status = str(session.get_job_meta(job_id).get("status", ""))
        except Exception:  # noqa: BLE001 - FLARE knows it no more
            status = ""
        if status and not status.startswith("FINISHED"):
            if status != "RUNNING" or is_at_work(session, job_id):
                raise ConfigError(
                    f"job {job_id} of this run is {status}. Wait for its end, or abort it "
                    f"(nvflare job abort {job_id}); then resume."
                )
            # A server that was restarted calls the job RUNNING for ever and cannot abort it.
            with contextlib.suppress(Exception):
                session.abort_job(job_id)
                Watch(session, job_id, lambda: None).until_finished()
        fetch(session, job_id, destination, server)


def cause(state: Mapping[str, Any]) -> str:
    """Why a run did not complete."""
    if state["status"] == "running":
        return (
            "the server's process of the job ended without a word after "
            f"{state['completed_rounds']} complete rounds: killed, or out of memory. The server's "
            "log may say more."
        )
    return str(state.get("reason") or f"the run ended {state['status']}")


def late_sites(session: Session, state: Mapping[str, Any]) -> list[str]:
    """Sites that are connected now but were not when the job began."""
    try:
        connected = {client.name for client in session.get_system_info().client_info}
    except Exception:  # noqa: BLE001 - the run is complete; nothing is lost but this remark
        return []
    return sorted(connected - state["sites"].keys() - state["left_out"].keys())
