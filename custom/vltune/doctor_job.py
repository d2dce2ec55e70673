"""An exported job as a site finds it on disk: read without NVIDIA FLARE.

    JOB/meta.json
    JOB/app/config/vltune_job.json          what to train
    JOB/app/config/vltune_versions.json     with what it was made
    JOB/app/config/config_fed_client.json   names the method's builder
    JOB/app/config/config_fed_server.json   rounds and timeouts
    JOB/app/custom/vltune                   the code, unless sites have it installed

The app may have another name: it is the folder with `config/vltune_job.json`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vltune.doctor_findings import DoctorError
from vltune.participant import Builder, import_builder

JOB_FILE = "vltune_job.json"
VERSIONS_FILE = "vltune_versions.json"
RESUME_FILE = "resume_adapter.safetensors"


@dataclass(frozen=True)
class ExportedJob:
    """What the doctor needs of an export.

    Attributes:
        folder: The job's folder.
        app: The app's folder in it.
        job: Content of vltune_job.json.
        participant: Dotted path of the method's builder.
        round_timeout_seconds: After which the server leaves a site out of a round; None: unknown.
        prepare_timeout_seconds: The same before round 0.
        facts: How facts of each site must begin, such as the hash of the class list.
        versions: Package -> version that the job was exported with; empty in older exports.
        code_hash: Of the code that it was exported with.
        scope: FLARE privacy scope that the job asks for.
        code_files: Hash of each module that it was exported with; empty in older exports.
        federation: What the server was told; empty where the site has no such file.
        run: The same.
    """

    folder: Path
    app: Path
    job: dict[str, Any]
    participant: str
    round_timeout_seconds: float | None
    prepare_timeout_seconds: float | None
    facts: dict[str, str]
    versions: dict[str, str]
    code_hash: str
    scope: str | None
    code_files: dict[str, str] = field(default_factory=dict)
    federation: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)

    @property
    def code(self) -> Path | None:
        """The package that the job brings, if it brings one."""
        folder = self.app / "custom" / "vltune"
        return folder if folder.is_dir() else None

    @property
    def resume_adapter(self) -> Path | None:
        """The global adapter that the run goes on from, if it is a resumed one."""
        path = self.app / "config" / RESUME_FILE
        return path if path.is_file() else None


def read_exported_job(folder: Path) -> ExportedJob:
    """Read an export.

    Raises:
        DoctorError: No job is there, or a file of it is damaged.
    """
    apps = sorted(path.parent.parent for path in folder.glob(f"*/config/{JOB_FILE}"))
    if not apps:
        raise DoctorError(
            f"{folder}: holds no app with config/{JOB_FILE}. Give the folder of an exported job, "
            "such as build/jobs/fedmpt (`make jobs` writes it)."
        )
    return read_app(apps[0], _participant(apps[0] / "config" / "config_fed_client.json"))


def read_app(app: Path, participant: str) -> ExportedJob:
    """Read the app of an export, or of a job that runs here.

    Args:
        app: The folder with `config/`.
        participant: Dotted path of the method's builder.

    Raises:
        DoctorError: A file of it is damaged.
    """
    config = app / "config"
    server = _read(config / "config_fed_server.json", optional=True)
    federation, run = _controller(server)
    made_with = _read(config / VERSIONS_FILE, optional=True)
    return ExportedJob(
        folder=app.parent,
        app=app,
        job=_read(config / JOB_FILE),
        participant=participant,
        round_timeout_seconds=federation.get("round_timeout_seconds"),
        prepare_timeout_seconds=federation.get("prepare_timeout_seconds"),
        facts=run.get("facts", {}),
        versions=made_with.get("versions", {}),
        code_hash=made_with.get("code", ""),
        scope=_read(app.parent / "meta.json", optional=True).get("scope"),
        code_files=made_with.get("files", {}),
        federation=federation,
        run=run,
    )


def find_builder(dotted: str) -> Builder:
    """Import the method's builder.

    Raises:
        DoctorError: There is no such function.
    """
    cure = "Install the package that the job needs, or export the job again."
    return import_builder(dotted, DoctorError, cure)


def _read(path: Path, *, optional: bool = False) -> dict[str, Any]:
    if optional and not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DoctorError(f"{path}: cannot be read ({error}). Export the job again.") from error
    if not isinstance(content, dict):
        raise DoctorError(f"{path}: expected an object at the top. Export the job again.")
    return content


def _controller(server: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys `federation` and `run` of the controller; empty where the site has no such file."""
    for workflow in server.get("workflows", []):
        arguments = workflow.get("args", {})
        if "federation" in arguments:
            return arguments["federation"], arguments.get("run", {})
    return {}, {}


def _participant(path: Path) -> str:
    for entry in _read(path).get("executors", []):
        dotted = entry.get("executor", {}).get("args", {}).get("participant")
        if isinstance(dotted, str):
            return dotted
    raise DoctorError(f"{path}: names no participant. Export the job again.")
