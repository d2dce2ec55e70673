"""`python jobs/<job>/job.py`: resolve, run in an environment, say what happens, bring it home."""

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from vltune.config import ConfigError, apply_overrides
from vltune.files import write_json_atomic
from vltune.flare.persistor import round_file
from vltune_lab.jobs.collect import ADAPTERS, collect, read_state, summarise
from vltune_lab.jobs.download import (
    FLARE_FOLDER,
    JOB_RECORD,
    bring_home,
    bring_home_what_is_left,
    keep_logs,
)
from vltune_lab.jobs.follow import printer
from vltune_lab.jobs.remote import DEFAULT_USER, open_session, run_remote
from vltune_lab.jobs.resolve import Job, JobKind, resolve_job
from vltune_lab.jobs.simulate import RunFailedError, check_sites, simulate
from vltune_lab.report.summary import write_summary

if TYPE_CHECKING:
    from vltune.flare.recipe import FederatedRecipe


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


def run_job(kind: JobKind, options: Options, console: Console | None = None) -> Path:
    """Run a job to its end and write its run folder.

    Returns:
        The run folder, with summary.json.

    Raises:
        ValueError: The job is wrong or the run failed; the message is the cause.
    """
    console = console or Console()
    began = time.monotonic()
    start = continue_run(kind, options) if options.resume else new_run(kind, options)
    if options.environment == "sim":
        check_sites(start.sites)
    start.run_folder.mkdir(parents=True, exist_ok=True)
    sites = list(start.sites)
    write_json_atomic(start.run_folder / JOB_RECORD, {"job": start.job, "sites": sites})
    with tempfile.TemporaryDirectory(prefix="vltune-job-") as folder:
        code = not options.config_only
        make_recipe(start.job, start.resume, start.adapter, with_code=code).export(folder)
        run = _simulated if options.environment == "sim" else _remote
        server = run(start, options, Path(folder) / start.job["name"], console)
    state = collect(server, start.run_folder, time.monotonic() - began)
    keep_logs(start.run_folder / FLARE_FOLDER)
    summary = summarise(start.job, state, start.run_folder, options.environment)
    if kind.finish is not None:
        summary = kind.finish(start.run_folder, start.job, summary)
    write_summary(start.run_folder, summary)
    return start.run_folder


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


def make_recipe(
    job: Mapping[str, Any],
    resume: Mapping[str, Any] | None = None,
    adapter: Path | None = None,
    *,
    with_code: bool = True,
) -> "FederatedRecipe":
    """The job as a FLARE recipe."""
    with warnings.catch_warnings():
        # FLARE warns that it takes --export from the command line; ours means the same.
        warnings.simplefilter("ignore", UserWarning)
        from vltune.flare.recipe import FederatedRecipe
    return FederatedRecipe(job, resume, adapter, with_code=with_code)


def _simulated(start: Start, options: Options, job_folder: Path, console: Console) -> Path:
    rounds = start.job["federation"]["rounds"]
    return simulate(
        job_folder,
        start.sites,
        (start.run_folder / FLARE_FOLDER / "workspace").absolute(),
        parallel=min(options.parallel or len(start.sites), len(start.sites)),
        on_round=printer(console, rounds),
    )


def _remote(start: Start, options: Options, job_folder: Path, console: Console) -> Path:
    session, server = open_session(options.environment, options.startup_kit, options.user)
    try:
        return run_remote(
            session,
            job_folder,
            start.run_folder / FLARE_FOLDER,
            server=server,
            on_round=printer(console, start.job["federation"]["rounds"]),
            on_submit=lambda job_id: console.print(f"FLARE job {job_id}", highlight=False),
        )
    finally:
        session.close()


def parse(arguments: Sequence[str], description: str) -> argparse.Namespace:
    """Read the command line of a job."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--env", choices=("sim", "poc", "prod"), default="sim", help="where to run")
    add("--sites", default="", help="simulated sites: a number or names a,b,c (default 4)")
    add("--parallel", type=int, help="simulated sites at the same time (default all)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="such as federation.rounds=2",
    )
    add("--out", type=Path, default=Path("runs"), help="folder of all runs")
    add("--name", default="", help="name of the run")
    add("--resume", type=Path, metavar="RUN", help="run folder to continue")
    add("--yaml", type=Path, help="another configuration")
    add("--startup-kit", type=Path, help="admin's startup kit, for prod")
    add("--user", default=DEFAULT_USER, help="FLARE admin user")
    add("--export", action="store_true", help="write the job for FLARE and stop")
    add("--export-dir", type=Path, default=Path("build/jobs"), help="where to")
    add("--config-only", action="store_true", help="bring no code: sites have VLTune installed")
    add("--downloaded", type=Path, metavar="FOLDER", help="report on a job downloaded by hand")
    return parser.parse_args(arguments)


def site_names(text: str, default: int = 4) -> tuple[str, ...]:
    """`3` to site-1..site-3; `a,b` to a and b.

    Raises:
        ConfigError: Zero sites, or an empty name.
    """
    text = text.strip() or str(default)
    if text.isdecimal():
        if int(text) < 1:
            raise ConfigError("--sites 0: expected at least one site")
        return tuple(f"site-{number}" for number in range(1, int(text) + 1))
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise ConfigError(f"--sites {text!r}: an empty name")
    return names


def main(kind: JobKind, arguments: Sequence[str] | None = None) -> int:
    """Entry of jobs/<job>/job.py; returns the exit status."""
    given = parse(sys.argv[1:] if arguments is None else arguments, f"Run {kind.method}.")
    console, errors = Console(), Console(stderr=True)
    try:
        if given.export:
            folder = export_job(kind, given)
            console.print(f"exported to {folder}", highlight=False)
            return 0
        if given.downloaded is not None:
            environment = "poc" if given.env == "sim" else given.env
            name = given.name or new_name(given.downloaded.absolute().name)
            run_folder = bring_home(kind, given.downloaded, given.out / name, environment)
        else:
            run_folder = run_job(kind, _options(given), console)
    except ValueError as error:
        kind_of = "failed" if isinstance(error, RunFailedError) else "error"
        errors.print(f"[red]{kind_of}:[/red] {error}", highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        errors.print("stopped; continue with --resume")
        return 130
    console.print(f"{run_folder}/summary.json", highlight=False)
    return 0


def export_job(kind: JobKind, given: argparse.Namespace) -> Path:
    """Write the job for FLARE; returns its folder."""
    job = resolve_job(kind, given.set, given.name, given.yaml)
    make_recipe(job, with_code=not given.config_only).export(str(given.export_dir))
    folder: Path = given.export_dir / job["name"]
    return folder


def _options(given: argparse.Namespace) -> Options:
    resumed = given.resume is not None and not given.sites
    return Options(
        environment=given.env,
        sites=() if resumed else site_names(given.sites),
        parallel=given.parallel,
        overrides=tuple(given.set),
        name=given.name,
        out=given.out,
        resume=given.resume,
        yaml=given.yaml,
        startup_kit=given.startup_kit,
        user=given.user,
        config_only=given.config_only,
    )
