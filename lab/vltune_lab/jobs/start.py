"""What a run starts from: a configuration, or what an earlier part of it left behind."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vltune.config import ConfigError, apply_overrides
from vltune.flare.persistor import round_file
from vltune_lab.jobs.collect import ADAPTERS, read_state
from vltune_lab.jobs.download import FLARE_FOLDER, JOB_RECORD, bring_home_what_is_left
from vltune_lab.jobs.remote import DEFAULT_USER, fetch_earlier, open_session
from vltune_lab.jobs.resolve import Job, JobKind, resolve_job
from vltune_lab.jobs.watch import Session


@dataclass(frozen=True)
class Options:
    """How to run a job.

    Attributes:
        environment: sim, poc or prod.
        sites: Simulated sites; names, or None for those of the resumed run.
        parallel: Simulated sites that work at the same time; default: all.
        overrides: `key.sub=value`.
        name: Name of the run; default: the job's name and the time.
        out: Folder of all runs.
        resume: A run folder to continue.
        yaml: Another configuration than the job's own.
        startup_kit: Admin's startup kit, for prod.
        user: FLARE admin user.
        config_only: Bring no code; sites have the package installed.
    """

    environment: str = "sim"
    sites: tuple[str, ...] = ()
    parallel: int | None = None
    overrides: tuple[str, ...] = ()
    name: str = ""
    out: Path = Path("runs")
    resume: Path | None = None
    yaml: Path | None = None
    startup_kit: Path | None = None
    user: str = DEFAULT_USER
    config_only: bool = False


@dataclass(frozen=True)
class Start:
    """A run that is ready to go."""

    job: Job
    run_folder: Path
    sites: tuple[str, ...]
    resume: dict[str, Any] | None = None
    adapter: Path | None = None


@contextmanager
def at_server(options: Options) -> Iterator[tuple[Session, Path | None]]:
    """The administrator's session, and the server's folder where it can be read."""
    session, server = open_session(options.environment, options.startup_kit, options.user)
    try:
        yield session, server
    finally:
        session.close()


def new_run(kind: JobKind, options: Options) -> Start:
    """Resolve the job and choose a folder that does not exist yet."""
    job = resolve_job(kind, options.overrides, yaml=options.yaml)
    name = options.name or new_name(job["name"])
    run_folder = options.out / name
    if run_folder.exists():
        raise ConfigError(
            f"{run_folder} exists. Choose another --name, or continue it: --resume {run_folder}."
        )
    return Start(job, run_folder, options.sites)


def new_name(begin: str) -> str:
    """A name with the time, for a run that was given none."""
    return f"{begin}-{time.strftime('%Y%m%d-%H%M%S')}"


def continue_run(kind: JobKind, options: Options) -> Start:
    """Find where a run stopped; its job is the one it started with, `--set` on top.

    Raises:
        ConfigError: The folder holds no run, or nothing of it can be continued.
    """
    assert options.resume is not None  # the caller's case
    run_folder = options.resume
    record = run_folder / JOB_RECORD
    if not record.exists():
        raise ConfigError(f"{run_folder}: holds no {JOB_RECORD}; give the folder of a run.")
    content = json.loads(record.read_text())
    if options.environment != "sim":
        with at_server(options) as (session, server):
            fetch_earlier(session, run_folder / FLARE_FOLDER, server)
    bring_home_what_is_left(run_folder)
    state = read_state(run_folder)
    done = state.get("completed_rounds", -1)
    adapter = run_folder / ADAPTERS / round_file(done)
    if not adapter.exists():
        raise ConfigError(f"{run_folder}: no global adapter to continue from; start a new run.")
    job = apply_overrides(content["job"], options.overrides)
    if kind.check is not None:
        kind.check(job)
    rounds = job["federation"]["rounds"]
    if done >= rounds:
        raise ConfigError(
            f"{run_folder}: all {rounds} rounds are done. Ask for more: --set federation.rounds=N."
        )
    metric = job["federation"].get("metric", "mAP")
    best = state.get("best") or {}
    resume = {
        "run_id": state["run_id"],
        "start_round": done,
        "best": float(best.get(metric, -1.0)),  # of another metric there is none yet
    }
    return Start(job, run_folder, options.sites or tuple(content["sites"]), resume, adapter)
