"""Rows of numbers on disk, one for each content: the file layout and the lock of a feature cache.

One folder a store, mode 0700::

    meta.json    what the store was made with
    rows.bin     rows of float16
    index.bin    one 32-byte SHA-256 a row, in row order
    lock         held by the one process that writes

Rows are on disk before their index entry: after a crash the rows without an entry are dropped and
written again.
"""

import contextlib
import fcntl
import functools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vltune.files import sha256_json, write_json_atomic

DIGEST_BYTES = 32
_LOCK_POLL_SECONDS = 0.05

Half = NDArray[np.float16]


class FeatureCacheError(ValueError):
    """The cache cannot be used; the message names the folder and the cure."""


class EncodingStopped(Exception):  # noqa: N818 - not an error: the admin asked for it
    """`should_stop` returned True; the rows encoded so far are kept."""


class FeatureStore:
    """Append-only rows of one shape, by content.

    Args:
        root: Folder of all stores.
        meta: What decides whether rows may be used; another value is another store.
        row_shape: Shape of one row.

    Attributes:
        folder: This store.
    """

    def __init__(self, root: Path, meta: Mapping[str, Any], row_shape: tuple[int, ...]) -> None:
        self._root, self._meta, self._row_shape = root, dict(meta), row_shape
        self._row_bytes = 2 * int(np.prod(row_shape))
        self.folder = root / sha256_json(self._meta)[:32]

    @functools.cached_property
    def held(self) -> frozenset[bytes]:
        """Digests in the store as this object first saw it; needs no lock, entries only grow."""
        try:
            return frozenset(_digests_of((self.folder / "index.bin").read_bytes()))
        except OSError:
            return frozenset()

    def rows(self, count: int) -> Half:
        """The first `count` rows, memory-mapped, (count, *row_shape)."""
        return np.memmap(self.folder / "rows.bin", np.float16, "r", shape=(count, *self._row_shape))

    def estimate_bytes(self, count: int) -> int:
        """Disk space of `count` rows."""
        return count * (self._row_bytes + DIGEST_BYTES)

    def check_space(self, count: int) -> None:
        """Refuse to begin what the disk cannot hold.

        Raises:
            FeatureCacheError: Naming what is needed and what is free.
        """
        needed, free = self.estimate_bytes(count), shutil.disk_usage(self.folder).free
        if needed > free:
            raise FeatureCacheError(
                f"{self.folder}: the features of {count} images need {needed / 1e6:.0f} MB, "
                f"{free / 1e6:.0f} MB are free. Free space or move the cache."
            )

    def append(self, digests: list[bytes], rows: Half) -> None:
        """Write rows, then their index entries. Needs the lock.

        Raises:
            FeatureCacheError: The disk is full or not writable; what was there before is kept.
        """
        try:
            _append_durably(self.folder / "rows.bin", rows.tobytes())
            _append_durably(self.folder / "index.bin", b"".join(digests))
        except OSError as error:
            self.recover()  # gives the space of a half-written batch back
            raise FeatureCacheError(
                f"{self.folder}: features cannot be written: {error.strerror}. Free space or move "
                "the cache; what was encoded so far is kept."
            ) from error

    def delete(self) -> None:
        """Delete the store; its rows are made again when next needed."""
        if self.folder.is_dir():
            with self.locked(lambda: False):
                # Moved first: a process that waits for the lock makes itself a new store.
                doomed = self.folder.with_name(f".{self.folder.name}.{os.getpid()}")
                self.folder.rename(doomed)
                shutil.rmtree(doomed)

    def recover(self) -> dict[bytes, int]:
        """Read the index; cut off what a crash left half done. Needs the lock."""
        try:
            known = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise FeatureCacheError(
                f"{self.folder}: meta.json cannot be read ({type(error).__name__}); delete the "
                "folder"
            ) from error
        if known != self._meta:
            raise FeatureCacheError(
                f"{self.folder}: meta.json is not that of this backbone; delete the folder"
            )
        index, rows = self.folder / "index.bin", self.folder / "rows.bin"
        for path in (index, rows):
            path.touch(mode=0o600)
        count = min(index.stat().st_size // DIGEST_BYTES, rows.stat().st_size // self._row_bytes)
        os.truncate(index, count * DIGEST_BYTES)
        os.truncate(rows, count * self._row_bytes)
        return {digest: row for row, digest in enumerate(_digests_of(index.read_bytes()))}

    @contextlib.contextmanager
    def locked(self, should_stop: Callable[[], bool]) -> Iterator[None]:
        """Hold the store's lock; another process (or thread) waits here until it is its turn."""
        handle = self._acquire(should_stop)
        try:
            if not (self.folder / "meta.json").is_file():
                write_json_atomic(self.folder / "meta.json", self._meta, private=True)
            yield
        finally:
            os.close(handle)

    def _acquire(self, should_stop: Callable[[], bool]) -> int:
        while True:
            handle = self._open_lock()
            if _try_lock(handle, self.folder / "lock"):
                return handle
            os.close(handle)  # reopened below: its holder may be deleting the store
            if should_stop():
                raise EncodingStopped("stopped while encoding images")
            time.sleep(_LOCK_POLL_SECONDS)

    def _open_lock(self) -> int:
        try:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.mkdir(exist_ok=True, mode=0o700)
            return os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise FeatureCacheError(
                f"{self.folder}: the feature cache cannot be written: {error.strerror}. "
                "Give a folder that is yours and writable as cache_dir."
            ) from error


def _digests_of(index: bytes) -> list[bytes]:
    """Whole entries of an index, in row order."""
    whole = range(0, len(index) - DIGEST_BYTES + 1, DIGEST_BYTES)
    return [index[start : start + DIGEST_BYTES] for start in whole]


def _try_lock(handle: int, path: Path) -> bool:
    """Take the lock if it is free and still the file at `path`; dies with the process."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(handle), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _append_durably(path: Path, content: bytes) -> None:
    with path.open("ab") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
