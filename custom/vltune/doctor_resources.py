"""Memory, disk, device and clock of a site, against what the job will ask of them."""

import os
import shutil
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from vltune.backbones.devices import require_device
from vltune.config import ConfigError
from vltune.doctor_findings import Finding, failed

FLOAT_BYTES = 4
TRAINING_COPIES = 4
"""Of each trained number: itself, its gradient, and Adam's two moments."""
SPARE_SHARE = 0.2
"""Below so much to spare a need that fits is a warning: activations and other processes come on
top of what can be counted."""
CLOCK_SLACK_SECONDS = 300
_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def available_memory_bytes() -> int | None:
    """What a new process may use, the container's limit included; None where nobody says."""
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(1024 * int(line.split()[1]))
    except OSError:
        pass
    for path in _CGROUP_LIMITS:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdecimal():
            found.append(int(text))
    return min(found, default=None)


def check_memory(frozen: int, trained: int, available: int | None, name: str = "memory") -> Finding:
    """Weights, gradients and optimiser; activations come on top.

    Args:
        frozen: Numbers of the frozen model, fp32.
        trained: Numbers that the optimiser moves.
        available: Bytes, or None where unknown.
        name: Of the finding.
    """
    needed = FLOAT_BYTES * (frozen + TRAINING_COPIES * trained)
    value = f"needs {_size(needed)} for weights, gradients and optimiser"
    cure = "Take a smaller backbone or rank, or a machine with more memory."
    return _compare(name, value, needed, available, cure)


def check_disk(
    needed: int, folder: Path, quota: int | None = None, name: str = "disk", what: str = ""
) -> Finding:
    """Is there room, and may it be written?

    Args:
        needed: Bytes that the job will add.
        folder: Where; it need not exist yet.
        quota: Bytes that the site grants, where that is less than what is free.
        name: Of the finding.
        what: For what, for the table.
    """
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
        free = shutil.disk_usage(place).free
    except OSError as error:
        return failed(name, error, "Give a folder that is yours and writable.")
    value = f"needs {_size(needed)}{f' {what}' if what else ''}"
    cure = "Free space, or move the folder to another disk."
    return _compare(name, value, needed, free if quota is None else min(free, quota), cure, place)


def _compare(
    name: str, value: str, needed: int, there: int | None, cure: str, place: Path | None = None
) -> Finding:
    if there is None:
        return Finding(name, "warn", value, "", "How much is free is not known here.")
    private = f"{_size(there)} available" + (f" in {place}" if place else "")
    if needed > there:
        return Finding(name, "fail", value, "no more than there is", cure, private)
    if needed > (1 - SPARE_SHARE) * there:
        expected = f"{SPARE_SHARE:.0%} to spare"
        return Finding(name, "warn", value, expected, cure, private)
    return Finding(name, "ok", value, private=private)


def check_device(name: str) -> Finding:
    """Is the device there that the site's file names?"""
    try:
        device = require_device(name)
    except ConfigError as error:
        cure = "Say device: cpu in vltune_site.yaml, or install a driver and torch for this GPU."
        return failed("device", error, cure, expected=name)
    if device.type == "cpu":
        return Finding("device", "ok", "cpu", private=f"{os.cpu_count()} cores")
    import torch

    return Finding("device", "ok", name, private=torch.cuda.get_device_name(device))


def check_clock(job: Path, certificate: Path | None, now: float | None = None) -> list[Finding]:
    """Is it later here than when the job was exported, and is the certificate valid now?

    Args:
        job: The job's folder.
        certificate: The startup kit's client.crt, or None.
        now: Seconds since 1970; None: this machine's clock.
    """
    here = time.time() if now is None else now
    written = max(path.stat().st_mtime for path in job.rglob("*") if path.is_file())
    said = datetime.fromtimestamp(here, UTC).isoformat(timespec="seconds")
    cure = "Set this machine's clock (NTP)."
    early = written - here
    if early > CLOCK_SLACK_SECONDS:
        clock = Finding(
            "clock",
            "fail",
            said,
            f"later than the job, which is dated {early:.0f} s from now",
            cure,
        )
    else:
        clock = Finding("clock", "ok", said)
    return [clock] if certificate is None else [clock, _check_certificate(certificate, here)]


def _check_certificate(path: Path, now: float) -> Finding:
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        return failed("certificate", error, "Get the startup kit again.")
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    value = f"valid {begin:%Y-%m-%d} to {end:%Y-%m-%d}"
    if not begin.timestamp() <= now <= end.timestamp():
        cure = "Set this machine's clock, or have the startup kit made again."
        return Finding("certificate", "fail", value, "valid now", cure)
    return Finding("certificate", "ok", value)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
