"""`vltune doctor`: can this site run this job? Asked before anything trains.

    report = examine(read_exported_job(folder), site, Options(link_mbps=100))

Each check is a function of `doctor_*` that returns a `Finding`; here they are put in order. Nothing
is trained and, without `deep`, no image is encoded and nothing is written.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vltune.config import ConfigError
from vltune.doctor_data import ExaminedData, examine_data
from vltune.doctor_federation import (
    check_authorization,
    check_ports,
    check_privacy,
    check_timeouts,
    payload_bytes,
)
from vltune.doctor_findings import Finding, Status, failed, to_public, worst
from vltune.doctor_job import ExportedJob, find_builder
from vltune.doctor_model import (
    AnyParticipant,
    LoadedModel,
    check_class_list,
    examine_judge,
    examine_model,
)
from vltune.doctor_resources import (
    FLOAT_BYTES,
    TRAINING_COPIES,
    available_memory_bytes,
    check_clock,
    check_device,
    check_disk,
    check_memory,
)
from vltune.doctor_versions import check_code, check_versions, installed_versions, read_lock
from vltune.participant import Participant
from vltune.site_config import AnySiteConfig, find_site_config, read_site_config


@dataclass(frozen=True)
class Options:
    """What the site knows and no file says.

    Attributes:
        kit: The FLARE site's folder with `startup/` and `local/`.
        lock: Versions to compare with, in place of those that the export recorded.
        link_mbps: Megabits a second of the site's link to the server.
        disk_quota_bytes: What the site grants, where that is less than what is free.
        memory_limit_bytes: The same of memory.
        deep: Encode every image and build everything, as the job's first task does.
        is_running: The job has come to this site: its code is what examines, and its first task,
            which decodes every image, is next.
    """

    kit: Path | None = None
    lock: Path | None = None
    link_mbps: float | None = None
    disk_quota_bytes: int | None = None
    memory_limit_bytes: int | None = None
    deep: bool = False
    is_running: bool = False

    def __post_init__(self) -> None:
        if self.link_mbps is not None and not self.link_mbps > 0:
            raise ConfigError(f"link_mbps must be > 0, got {self.link_mbps}")
        for name in ("disk_quota_bytes", "memory_limit_bytes"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{name} must be >= 0, got {value}")


@dataclass(frozen=True)
class Report:
    """All findings of one site.

    Attributes:
        site: Its name.
        findings: In the order of the checks.
    """

    site: str
    findings: tuple[Finding, ...]

    @property
    def status(self) -> Status:
        """The worst finding's."""
        return worst(self.findings)

    def to_mapping(self, *, private: bool = False) -> dict[str, Any]:
        """As JSON; only with `private` does it hold what must stay at the site."""
        content: dict[str, Any] = {
            "site": self.site,
            "status": self.status,
            "findings": [to_public(finding) for finding in self.findings],
        }
        if private:
            content["private"] = {
                finding.name: finding.private for finding in self.findings if finding.private
            }
        return content


def locate_site(file: Path | None, kit: Path | None) -> tuple[AnySiteConfig, str]:
    """Read the file of a site: the given one, else where the site's own job would look.

    Returns:
        The configuration and the site's name.

    Raises:
        ConfigError: There is none, or it is wrong.
    """
    name = "site" if kit is None else kit.absolute().name
    if file is None:
        config = find_site_config(name, None if kit is None else kit / "local")
    else:
        config = read_site_config(file)
    return config, config.site or name


def examine(
    exported: ExportedJob, site: AnySiteConfig, name: str, options: Options | None = None
) -> Report:
    """Make every check; a check that fails does not keep the others from being made."""
    options = options or Options()
    available = available_memory_bytes()  # before the model takes its share
    limits = [n for n in (available, options.memory_limit_bytes) if n is not None]
    findings = _software(exported, options)
    participant, built = _build(exported, site, name)
    findings += [built, *check_class_list(exported.job, exported.facts)]
    findings.append(check_device(getattr(site, "device", "cpu")))
    loaded = None
    if isinstance(participant, AnyParticipant):
        found, loaded = examine_model(participant, exported)
        findings += [*found, *_guarded("judge", lambda: examine_judge(exported.job, site))]
    data = ExaminedData(())
    if participant is None or isinstance(participant, AnyParticipant):
        backbone = None if loaded is None else loaded.backbone
        decodes = not options.is_running
        data = examine_data(site, exported.job, backbone, decodes=decodes)
    findings += data.findings
    findings += _resources(exported, site, loaded, data, options, min(limits, default=None))
    findings += _federation(exported, options)
    if options.deep:
        findings.append(_deep(exported, site, name, worst(findings)))
    return Report(name, tuple(findings))


def _software(exported: ExportedJob, options: Options) -> list[Finding]:
    expected = exported.versions if options.lock is None else read_lock(options.lock)
    return [
        *check_versions(expected, installed_versions()),
        check_code(
            exported.code, exported.code_hash, exported.code_files, is_running=options.is_running
        ),
    ]


def _build(
    exported: ExportedJob, site: AnySiteConfig, name: str
) -> tuple[Participant | None, Finding]:
    """Read job and site together as the executor will; nothing is loaded yet."""
    title = "job and site"
    try:
        builder = find_builder(exported.participant)
        participant = builder(exported.job, site, name, site.state_dir / name, site.threads or 1)
    except ValueError as error:
        cure = "Correct the key that the site's own table names, in the job or vltune_site.yaml."
        return None, failed(title, error, cure)
    method = str(exported.job.get("method", exported.participant))
    return participant, Finding(title, "ok", f"{method} on data: {site.data}")


def _resources(
    exported: ExportedJob,
    site: AnySiteConfig,
    loaded: LoadedModel | None,
    data: ExaminedData,
    options: Options,
    memory: int | None,
) -> list[Finding]:
    certificate = None if options.kit is None else options.kit / "startup" / "client.crt"
    clock = check_clock(exported.folder, certificate)
    if loaded is None:
        return clock
    quota = options.disk_quota_bytes
    # What the site keeps of its training, once more while it is written anew.
    state = 2 * TRAINING_COPIES * FLOAT_BYTES * loaded.trained
    findings = [check_memory(loaded.frozen, loaded.trained, memory)]
    if data.cache_bytes is not None:
        findings.append(
            check_disk(data.cache_bytes, site.cache_dir, quota, "disk, features", "of features")
        )
    findings.append(check_disk(state, site.state_dir, quota, "disk, state", "of a run's state"))
    if loaded.spec is not None:
        up = payload_bytes(loaded.spec)
        down = up + FLOAT_BYTES * loaded.residual
        timeout = exported.round_timeout_seconds
        findings.append(check_timeouts(up, down, options.link_mbps, timeout))
    return findings + clock


def _federation(exported: ExportedJob, options: Options) -> list[Finding]:
    if options.kit is None:
        return []
    local = options.kit / "local"
    return [
        *check_ports(options.kit),
        check_privacy(local, exported.scope),
        check_authorization(local, exported.code is not None),
    ]


def _guarded(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return check()
    except ValueError as error:
        return [failed(name, error, "Correct the job's key of this name.")]


def _deep(exported: ExportedJob, site: AnySiteConfig, name: str, before: Status) -> Finding:
    """Do what the job's first task does: load, encode every image, build the adapter."""
    limit = exported.prepare_timeout_seconds
    if before == "fail":
        return Finding("prepare", "warn", "not tried", "", "Cure the failures first.")
    participant, built = _build(exported, site, name)
    if participant is None:
        return built
    began = time.perf_counter()
    try:
        handshake = participant.prepare(lambda: False)
    except (ValueError, OSError, RuntimeError) as error:
        return failed("prepare", error, "See the site's own table.")
    seconds = time.perf_counter() - began
    value = f"{handshake.num_examples} to train on, ready in {seconds:.0f} s"
    expected = "" if limit is None else f"at most prepare_timeout_seconds {limit:g}"
    if limit is not None and seconds > limit:
        cure = "It is encoded now and the next start is quick; or raise the timeout."
        return Finding("prepare", "warn", value, expected, cure)
    return Finding("prepare", "ok", value, expected)
