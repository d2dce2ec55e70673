"""Files that are either whole or absent: write to a temporary name, then rename."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class OutputError(ValueError):
    """A file or folder could not be written; the message names it and the cure."""


@contextlib.contextmanager
def atomic_path(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` when the block succeeds.

    When the block raises, the temporary file is removed and `path` keeps its old content.

    Args:
        path: Where the file will be.
        private: Only its owner may read it; else what the umask allows.

    Raises:
        OutputError: The folder cannot be created or written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        # mkstemp makes files that only their owner may read; others get what the umask allows.
        if not private:
            os.fchmod(handle, 0o666 & ~_umask())
        os.close(handle)
    except OSError as error:
        raise OutputError(
            f"cannot write in {path.parent}: {error.strerror}. "
            "Choose a folder that exists, is writable and has space left."
        ) from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}. Free space or choose another place."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    """Read the process's umask; there is no call that reads it without setting it."""
    current = os.umask(0o077)
    os.umask(current)
    return current


def write_bytes_atomic(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write `content` to `path`, whole or not at all."""
    with atomic_path(path, private=private) as temporary:
        temporary.write_bytes(content)


def write_json_atomic(path: Path, content: Any, *, private: bool = False) -> None:
    """Write `content` as indented JSON to `path`, whole or not at all. NaN is refused."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes_atomic(path, text.encode(), private=private)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(content: Any) -> str:
    """Hex SHA-256 of the canonical JSON of `content` (sorted keys, no spaces, UTF-8)."""
    text = json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()
