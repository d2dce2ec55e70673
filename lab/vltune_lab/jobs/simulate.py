"""Run an exported job under the real FLARE simulator, in its own process group."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from vltune.config import ConfigError
from vltune.flare.executor import THREADS_VARIABLE
from vltune.flare.run_log import METRICS_FILE, STATE_FILE
from vltune.site_config import SITE_PLACEHOLDER, VARIABLE, find_site_config
from vltune_lab.jobs.follow import Follower, Record

SIMULATOR = "nvflare.private.fed.app.simulator.simulator"
SERVER_FOLDER = Path("server/simulate_job/app_server")
POLL_SECONDS = 0.2
GRACE_SECONDS = 60.0
"""FLARE's simulator can wait for dead site processes for ever; the run is over long before."""


class RunFailedError(ValueError):
    """A run ended without a result; the message is the cause and where the logs are."""


def check_sites(names: Sequence[str]) -> None:
    """Refuse repeated names, and sites whose vltune_site.yaml is missing or wrong.

    Raises:
        ConfigError: The message names the site and the cure.
    """
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise ConfigError(
            f"two sites have the same name: {', '.join(repeated)}. Give each its own."
        )
    variable = os.environ.get(VARIABLE, "")
    if len(names) > 1 and variable and SITE_PLACEHOLDER not in variable:
        raise ConfigError(
            f"{VARIABLE}={variable}: {len(names)} simulated sites would share one file. Put "
            f"{SITE_PLACEHOLDER} where the site's name stands in the path."
        )
    for name in names:
        find_site_config(name, None)


def simulate(
    job_folder: Path,
    names: Sequence[str],
    workspace: Path,
    *,
    parallel: int,
    on_round: Callable[[Record], None],
    timeout_seconds: float | None = None,
) -> Path:
    """Run the job and return the server's folder.

    Args:
        job_folder: The export.
        names: Simulated sites.
        workspace: FLARE's; it is wiped first. `simulator.log` beside it takes all output.
        parallel: Sites that work at the same time.
        on_round: Called with each round's record as it is written.
        timeout_seconds: Upper bound on the whole run.

    Raises:
        RunFailedError: The run failed or did not end.
    """
    server = workspace / SERVER_FOLDER
    log_path = workspace.with_name("simulator.log")
    workspace.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(workspace, ignore_errors=True)
    command = [sys.executable, "-m", SIMULATOR, str(job_folder), "-w", str(workspace)]
    command += ["-c", ",".join(names), "-n", str(len(names)), "-t", str(parallel)]
    follower = Follower(server / METRICS_FILE, on_round)
    with log_path.open("wb") as log:
        process = _start(command, log, parallel)
        try:
            code = _wait(process, server / STATE_FILE, follower, timeout_seconds)
        finally:
            _end(process)
    follower.poll()
    _judge(server, code, log_path)
    return server


def _start(command: list[str], log: IO[bytes], parallel: int) -> subprocess.Popen[bytes]:
    """Start in a process group of its own, so that its sites can be ended with it."""
    return subprocess.Popen(
        command,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=_environment(parallel),
        start_new_session=True,
    )


def _environment(parallel: int) -> dict[str, str]:
    """What the simulator's processes see: absolute paths, since FLARE changes folders."""
    environment = dict(os.environ)
    if environment.get(VARIABLE):
        environment[VARIABLE] = str(Path(environment[VARIABLE]).expanduser().absolute())
    threads = max(1, len(os.sched_getaffinity(0)) // parallel)
    return {THREADS_VARIABLE: str(threads)} | environment


def _wait(
    process: subprocess.Popen[bytes],
    state: Path,
    follower: Follower,
    timeout_seconds: float | None,
) -> int | None:
    """The return code, or None where the process had to be given up."""
    began, over = time.monotonic(), None
    while process.poll() is None:
        time.sleep(POLL_SECONDS)
        follower.poll()
        now = time.monotonic()
        if over is None and _status(state) not in ("running", ""):
            over = now
        if over is not None and now - over > GRACE_SECONDS:
            return None
        if timeout_seconds is not None and now - began > timeout_seconds:
            return None
    return process.returncode


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the simulator and its sites; they are one process group of our own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        time.sleep(0.5 if process.poll() is None else 0.1)
    process.wait()


def _status(state: Path) -> str:
    try:
        return str(json.loads(state.read_text())["status"])
    except (OSError, ValueError, KeyError):
        return ""


def _judge(server: Path, code: int | None, log_path: Path) -> None:
    status = _status(server / STATE_FILE)
    if status == "completed":
        return
    if status == "failed":
        reason = str(json.loads((server / STATE_FILE).read_text())["reason"])
    elif status == "":
        reason = "the simulator did not start the job" + last_errors(log_path)
    else:
        reason = f"the run was still {status} when the simulator ended (code {code})"
    raise RunFailedError(f"{reason}\nLogs: {log_path} and the sites' log.txt beside it.")


def last_errors(log_path: Path, count: int = 3) -> str:
    """The last lines of a log that say error, for the message."""
    lines = log_path.read_text(errors="replace").splitlines() if log_path.exists() else []
    errors = [line for line in lines if " ERROR " in line or "Error" in line][-count:]
    return "".join(f"\n  {line[:300]}" for line in errors)
