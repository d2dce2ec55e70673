"""`vltune poc`: data, job, system, submission, result, end; a job's whole way on one machine."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from vltune.flare.executor import THREADS_VARIABLE
from vltune.site_config import VARIABLE as SITE_VARIABLE
from vltune_lab.jobs.download import bring_home
from vltune_lab.jobs.flare_commands import WORKSPACE_VARIABLE
from vltune_lab.jobs.follow import printer
from vltune_lab.jobs.global_test import VARIABLE as GLOBAL_VARIABLE
from vltune_lab.jobs.kinds import FEDMPT, FEDUMM, FEDVLM, REPOSITORY
from vltune_lab.jobs.launch import make_recipe, new_name
from vltune_lab.jobs.poc import Poc
from vltune_lab.jobs.poc_project import PocError, check_ports, read_project
from vltune_lab.jobs.resolve import Job, JobKind, resolve_job

PROJECT = REPOSITORY / "poc_workspace" / "project.yml"
WORLDS = REPOSITORY / "poc_workspace" / "worlds"
JOBS = Path("build/poc/jobs")
DOWNLOADS = Path("build/poc/downloads")

T = TypeVar("T")


@dataclass(frozen=True)
class PocJob:
    """A job, and what makes it short enough to look at.

    Attributes:
        kind: The job.
        task: Of the world that its sites have.
        overrides: Of the job's own values.
    """

    kind: JobKind
    task: str
    overrides: tuple[str, ...]


POC_JOBS = {
    "fedmpt": PocJob(FEDMPT, "multilabel", ("federation.rounds=3", "training.local_epochs=1")),
    "fedvlm": PocJob(FEDVLM, "preference", ("federation.rounds=2",)),
    "fedumm": PocJob(FEDUMM, "unified", ("federation.rounds=2", "samples.prompts=[a dog]")),
}


@dataclass(frozen=True)
class PocOptions:
    """What to run and where.

    Attributes:
        job: fedmpt, fedvlm or fedumm.
        project: FLARE's project.yml.
        workspace: FLARE's folder; it is wiped.
        data: Folder of the sites' data; default build/poc/JOB, made where it is not there.
        world: YAML of these data; default poc_workspace/worlds/JOB.yaml.
        out: Folder of all runs.
        name: Of the run; default: the job's name and the time.
        overrides: `key.sub=value` for the job.
        config_only: Export without code: the package is installed where the sites run.
    """

    job: str = "fedmpt"
    project: Path = PROJECT
    workspace: Path = Path("poc_workspace/run")
    data: Path | None = None
    world: Path | None = None
    out: Path = Path("runs")
    name: str = ""
    overrides: tuple[str, ...] = ()
    config_only: bool = False


def run_poc(options: PocOptions, console: Console) -> Path:
    """Run a job on a FLARE system of this machine; the system is ended in every case.

    Returns:
        The run folder, with summary.json and report.html.

    Raises:
        PocError: The system cannot start, or a command of FLARE's failed.
        ValueError: The job is wrong, or it did not complete.
    """
    chosen = POC_JOBS.get(options.job)
    if chosen is None:
        raise PocError(f"job {options.job!r}: expected one of {', '.join(POC_JOBS)}.")
    poc = Poc(read_project(options.project), options.workspace, console)
    run_folder = options.out / (options.name or new_name(f"{options.job}-poc"))
    if run_folder.exists():
        raise PocError(f"{run_folder} exists. Choose another --name.")
    check_ports(poc.project)  # before minutes are spent on data
    timed = Stopwatch(console)
    data = options.data or Path("build/poc") / options.job
    timed("data", lambda: make_data(options, chosen, data, console))
    set_environment(poc, data)
    overrides = (*chosen.overrides, *options.overrides)
    job = resolve_job(chosen.kind, overrides)
    folder = timed("export", lambda: export(job, overrides, options, poc))
    began = time.monotonic()
    with poc.running(allows_classes=options.config_only):
        console.print(f"  started in {time.monotonic() - began:.0f} s", highlight=False)
        job_id = timed("submit", lambda: poc.submit(folder))
        on_round = printer(console, job["federation"]["rounds"])
        said = timed("job", lambda: poc.wait(job_id, on_round))
        console.print(f"  {said}", highlight=False, markup=False)
        download = timed("download", lambda: poc.download(job_id, DOWNLOADS))
        began = time.monotonic()
    console.print(f"  stopped in {time.monotonic() - began:.0f} s", highlight=False)
    script = _script(options.job)
    poc.nvflare.show(
        *("python", script, "--downloaded", download.absolute()),
        *("--name", run_folder.name, "--out", options.out),
    )
    timed("report", lambda: bring_home(chosen.kind, download, run_folder, "poc"))
    timed.total()
    return run_folder


def make_data(options: PocOptions, chosen: PocJob, data: Path, console: Console) -> None:
    """Write the sites' data where they are not there yet."""
    from vltune_lab.commands import Task, scenes_make

    world = options.world or WORLDS / f"{options.job}.yaml"
    Poc(read_project(options.project), options.workspace, console).nvflare.show(
        *("vltune", "scenes", "make", "--task", chosen.task),
        *("--config", world.absolute(), "--out", data.absolute()),
    )
    scenes_make(data, world, Task(chosen.task), [])


def set_environment(poc: Poc, data: Path) -> None:
    """Say where FLARE's and the sites' files are; the sites' processes inherit it."""
    folder = data.absolute()
    threads = max(1, len(os.sched_getaffinity(0)) // len(poc.project.sites))
    values = {
        WORKSPACE_VARIABLE: str(poc.workspace),
        SITE_VARIABLE: str(folder / "{site}" / "vltune_site.yaml"),
        THREADS_VARIABLE: os.environ.get(THREADS_VARIABLE, str(threads)),
    }
    if (folder / "global" / "test" / "instances.json").is_file():
        values[GLOBAL_VARIABLE] = str(folder / "global" / "test")
    for name, value in values.items():
        poc.nvflare.show("export", f"{name}={value}")
    os.environ.update(values)


def export(job: Job, overrides: tuple[str, ...], options: PocOptions, poc: Poc) -> Path:
    """Export the job; returns its folder."""
    sets = [part for override in overrides for part in ("--set", override)]
    more = ["--config-only"] if options.config_only else []
    poc.nvflare.show(
        *("python", _script(options.job), "--export", "--export-dir", JOBS),
        *(more + sets),
    )
    make_recipe(job, with_code=not options.config_only).export(str(JOBS))
    return JOBS / str(job["name"])


def _script(job: str) -> Path:
    return REPOSITORY / "jobs" / job / "job.py"


class Stopwatch:
    """Says what each part took, and all of them."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.began = time.monotonic()

    def __call__(self, name: str, work: Callable[[], T]) -> T:
        """Do the work and say how long it took."""
        began = time.monotonic()
        result = work()
        self.console.print(f"  {name}: {time.monotonic() - began:.0f} s", highlight=False)
        return result

    def total(self) -> None:
        """Say what everything took."""
        self.console.print(f"  in all: {time.monotonic() - self.began:.0f} s", highlight=False)
