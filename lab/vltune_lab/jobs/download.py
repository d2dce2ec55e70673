"""Results that lie about: a job downloaded by hand, rounds of a run that was interrupted, logs."""

import shutil
from pathlib import Path

from vltune.config import ConfigError
from vltune.doctor_findings import DoctorError
from vltune.doctor_job import read_exported_job
from vltune.files import write_json_atomic
from vltune.flare.run_log import STATE_FILE
from vltune_lab.jobs.collect import collect, read_state, summarise
from vltune_lab.jobs.resolve import Job, JobKind
from vltune_lab.jobs.simulate import RunFailedError
from vltune_lab.report.summary import write_summary

JOB_RECORD = "job.json"
FLARE_FOLDER = "flare"


def bring_home(kind: JobKind, download: Path, run_folder: Path, environment: str) -> Path:
    """Make the run folder of a downloaded job: adapters, figures, summary, report.

    Args:
        kind: The job's.
        download: What `nvflare job download` or the admin console's download_job wrote.
        run_folder: It must not exist yet.
        environment: poc or prod.

    Returns:
        The run folder, with summary.json.

    Raises:
        ConfigError: No job of this kind is there, or the run folder exists.
        RunFailedError: The job did not complete; the message is the cause.
    """
    if run_folder.exists():
        raise ConfigError(f"{run_folder} exists. Choose another --name.")
    server = server_folder(download)
    job = job_of(download)
    if job["method"] != kind.method:
        raise ConfigError(f"{download}: holds a job of {job['method']}, not of {kind.method}.")
    state = read_state(server)
    if state.get("status") != "completed":
        reason = state.get("reason", "its server wrote no reason")
        raise RunFailedError(f"the job is {state.get('status')}: {reason}\nLogs: {download}")
    run_folder.mkdir(parents=True)
    write_json_atomic(run_folder / JOB_RECORD, {"job": job, "sites": sorted(state["sites"])})
    state = collect(server, run_folder)
    summary = summarise(job, state, run_folder, environment)
    if kind.finish is not None:
        summary = kind.finish(run_folder, job, summary)
    write_summary(run_folder, summary)
    return run_folder


def server_folder(download: Path) -> Path:
    """The server's folder in a download.

    Raises:
        ConfigError: There is none.
    """
    found = sorted(path.parent for path in download.rglob(STATE_FILE))
    if not found:
        raise ConfigError(
            f"{download}: holds no {STATE_FILE}. Give the folder of a downloaded job."
        )
    return found[0]


def job_of(download: Path) -> Job:
    """The job dict as it was before the export took it apart.

    Raises:
        ConfigError: No export is in the download.
    """
    for path in sorted(download.rglob("config_fed_server.json")):
        try:
            exported = read_exported_job(path.parents[2])
        except DoctorError:  # a folder that has not all files
            continue
        if exported.federation and exported.run:
            told = {key: value for key, value in exported.job.items() if key != "num_rounds"}
            return told | {
                "name": exported.run["name"],
                "method": exported.run["method"],
                "seed": exported.run["seed"],
                "participant": exported.participant,
                "federation": exported.federation,
            }
    raise ConfigError(f"{download}: holds no exported job.")


def bring_home_what_is_left(run_folder: Path) -> None:
    """Collect the rounds of a run that failed or was interrupted, wherever it left them."""
    known = read_state(run_folder).get("completed_rounds", -1)
    for path in sorted((run_folder / FLARE_FOLDER).rglob(STATE_FILE)):
        if read_state(path.parent).get("completed_rounds", -1) > known:
            known = collect(path.parent, run_folder)["completed_rounds"]


def keep_logs(folder: Path) -> None:
    """After a complete run, keep of the simulator's workspace only who logged what."""
    workspace = folder / "workspace"
    for path in sorted(workspace.glob("*/log.txt")):
        shutil.copyfile(path, folder / f"{path.parent.name}.log")
    shutil.rmtree(workspace, ignore_errors=True)
