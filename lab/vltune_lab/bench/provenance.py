"""Where a measurement comes from: commit, package versions, hardware."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from vltune.doctor_versions import versions_of

PACKAGES = ("vltune", "torch", "torchvision", "open_clip_torch", "nvflare", "numpy", "POT")
_CPU_INFO = Path("/proc/cpuinfo")


def provenance(command: str) -> dict[str, Any]:
    """Keys command, commit, versions and hardware of a result file.

    Args:
        command: What a reader types to measure it again.
    """
    return {
        "command": command,
        "commit": commit(Path(__file__).parent),
        "versions": versions(),
        "hardware": hardware(),
    }


def commit(folder: Path) -> str:
    """Hash of the checked-out commit, with "+changes" where tracked files differ from it."""
    found = _git(folder, "rev-parse", "HEAD")
    if found is None:
        return "unknown"
    has_changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{found}+changes" if has_changes else found


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that matter for numbers."""
    return {"python": platform.python_version()} | versions_of(PACKAGES)


def hardware() -> str:
    """Readable line: processor, usable cores, and GPU if torch sees one."""
    parts = [_processor(), f"{len(os.sched_getaffinity(0))} cores"]
    torch = sys.modules.get("torch")  # asked only if the measurement used it
    if torch is not None and torch.cuda.is_available():
        parts.append(str(torch.cuda.get_device_name(0)))
    return ", ".join(parts)


def _processor() -> str:
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
