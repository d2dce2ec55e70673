"""Which code is this: one hash of the package, and one for each module to say where two differ."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

PACKAGE = Path(__file__).parent
HASH_DIGITS = 16
"""Not all of them: FLARE would warn of a secret in the exported job."""
MODULE_DIGITS = 8
NAMED = 3
"""Modules that a message names; the others are counted."""


def code_hash(package: Path = PACKAGE) -> str:
    """First 16 hex digits of the SHA-256 of all source files' names and bytes."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:HASH_DIGITS]


def code_files(package: Path = PACKAGE) -> dict[str, str]:
    """Dotted name of each module below the package -> first 8 hex digits of its SHA-256."""
    return {
        _dotted(path.relative_to(package)): hashlib.sha256(path.read_bytes()).hexdigest()[
            :MODULE_DIGITS
        ]
        for path in sorted(package.rglob("*.py"))
    }


def _dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts)


def describe_code(expected: Mapping[str, str], here: Mapping[str, str]) -> str:
    """Say which modules differ; of those that only `here` has, no name is told, but how many.

    Args:
        expected: `code_files` of the job; empty where its export did not say.
        here: `code_files` of what runs.

    Returns:
        Readable text; "" where nothing differs or nothing is expected.
    """
    if not expected:
        return ""
    changed = sorted(name for name in expected.keys() & here.keys() if expected[name] != here[name])
    missing = sorted(expected.keys() - here.keys())
    more = len(here.keys() - expected.keys())
    parts = [
        f"{_names(names)} {word}"
        for names, word in ((changed, "changed"), (missing, "missing"))
        if names
    ]
    if more:
        parts.append(f"{more} that the job does not know")
    return "; ".join(parts)


def _names(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
