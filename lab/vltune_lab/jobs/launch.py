"""`python jobs/<job>/job.py`: resolve, run in an environment, say what happens, bring it home."""

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from vltune.config import ConfigError
from vltune.files import write_json_atomic
from vltune_lab.jobs.collect import ADAPTERS, collect, read_state, summarise
from vltune_lab.jobs.download import (
    FLARE_FOLDER,
    JOB_RECORD,
    bring_home,
    bring_home_what_is_left,
    keep_logs,
)
from vltune_lab.jobs.follow import printer
from vltune_lab.jobs.remote import DEFAULT_USER, run_remote, submitted_jobs
from vltune_lab.jobs.resolve import JobKind, resolve_job
from vltune_lab.jobs.simulate import RunFailedError, check_sites, simulate
from vltune_lab.jobs.start import Options, Start, at_server, continue_run, new_name, new_run
from vltune_lab.report.summary import write_summary

if TYPE_CHECKING:
    from vltune.flare.recipe import FederatedRecipe


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
        try:
            server = run(start, options, Path(folder) / start.job["name"], console)
        except RunFailedError as error:
            raise RunFailedError(f"{error}\n{what_is_kept(start.run_folder)}") from error
    state = collect(server, start.run_folder, time.monotonic() - began)
    keep_logs(start.run_folder / FLARE_FOLDER)
    summary = summarise(start.job, state, start.run_folder, options.environment)
    if kind.finish is not None:
        summary = kind.finish(start.run_folder, start.job, summary)
    write_summary(start.run_folder, summary)
    return start.run_folder


def what_is_kept(run_folder: Path) -> str:
    """What a run that failed has completed, and how to go on."""
    bring_home_what_is_left(run_folder)
    flare = run_folder / FLARE_FOLDER
    if any(not (flare / job_id).exists() for job_id in submitted_jobs(flare)):
        return f"What is complete lies at the server; continue with --resume {run_folder}."
    done = read_state(run_folder).get("completed_rounds", 0)
    if not (run_folder / ADAPTERS).exists():
        return "No round is complete; start again."
    return f"{done} complete rounds are kept; continue with --resume {run_folder}."


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
    with at_server(options) as (session, server):
        return run_remote(
            session,
            job_folder,
            start.run_folder / FLARE_FOLDER,
            server=server,
            on_round=printer(console, start.job["federation"]["rounds"]),
            say=lambda text: console.print(text, highlight=False),
        )


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
