"""Frozen features: encode each image once, keep the result on disk, memory-mapped.

A store belongs to one (backbone, preprocessing, precision); a row to one image *content*, so that
copies share a row and a changed file is encoded again. Layout of the cache folder (mode 0700)::

    <key>/meta.json    what the store was made with
    <key>/rows.bin     rows of (1 + M) x D float16: image feature, then patch features
    <key>/index.bin    one 32-byte SHA-256 a row, in row order
    <key>/lock         held by the one process that encodes

Rows are on disk before their index entry: after a crash the rows without an entry are dropped and
encoded again. The features describe personal images: keep the folder as safe as the images.
"""

import contextlib
import fcntl
import functools
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vltune.backbones.clip import ClipBackbone
from vltune.files import sha256_file, sha256_json, write_json_atomic

logger = logging.getLogger(__name__)

FORMAT = 1
DIGEST_BYTES = 32
_READERS = min(4, os.cpu_count() or 1)
_LOCK_POLL_SECONDS = 0.05

Half = NDArray[np.float16]
Source = TypeVar("Source")
"""What an image is read from: a path, or a handle of the data room."""


class FeatureCacheError(ValueError):
    """The cache cannot be used; the message names the folder and the cure."""


class EncodingStopped(Exception):  # noqa: N818 - not an error: the admin asked for it
    """`should_stop` returned True; the rows encoded so far are kept."""


class PatchRows:
    """Patch features (N, M, D) float16 in sample order, read from disk when indexed."""

    def __init__(self, store: Half, rows: NDArray[np.int64]) -> None:
        self._store = store
        self._rows = rows
        self.shape = (len(rows), store.shape[1] - 1, store.shape[2])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, samples: Any) -> Half:
        """Copy the rows of some samples into memory; `samples` as for a NumPy array."""
        return np.array(self._store[self._rows[samples], 1:])


@dataclass(frozen=True)
class FeatureSet:
    """Features of N samples.

    Attributes:
        patch_features: (N, M, D) float16 on disk, unit norm up to rounding.
        image_features: (N, D) float32 in memory, unit norm up to rounding.
        num_encoded: Images that had to be encoded by this call.
    """

    patch_features: PatchRows
    image_features: NDArray[np.float32]
    num_encoded: int


class FeatureCache:
    """Append-only store of one backbone's features.

    Attributes:
        folder: The store of this backbone inside the cache folder.
    """

    def __init__(self, folder: Path, backbone: ClipBackbone) -> None:
        """Open or create the store of `backbone` below `folder`; nothing is encoded yet."""
        self._backbone = backbone
        self._meta = {
            "format": FORMAT,
            "backbone": backbone.fingerprint,
            "preprocessing": backbone.preprocess_fingerprint,
            "precision": backbone.precision,
            "num_patches": backbone.num_patches,
            "embed_dim": backbone.embed_dim,
        }
        self._row_shape = (1 + backbone.num_patches, backbone.embed_dim)
        self._row_bytes = 2 * self._row_shape[0] * self._row_shape[1]
        self._root = folder
        self.folder = folder / sha256_json(self._meta)[:32]
        self._digest_of: dict[Path, bytes] = {}

    @functools.cached_property
    def _held(self) -> frozenset[bytes]:
        """Digests in the store as this object first saw it; needs no lock, entries only grow."""
        try:
            return frozenset(_digests_of((self.folder / "index.bin").read_bytes()))
        except OSError:
            return frozenset()

    def holds(self, path: Path) -> bool:
        """Whether the store holds a file of this content; False for a file that cannot be read.

        The next `encode` takes the file to be what it was then and does not hash it again.
        """
        try:
            digest = bytes.fromhex(sha256_file(path)) if self._held else b""
        except OSError:
            return False
        if digest in self._held:
            self._digest_of[path] = digest
        return digest in self._held

    def holds_content(self, digest: bytes) -> bool:
        """Whether the store holds the content of this SHA-256."""
        return digest in self._held

    def encode(
        self,
        image_paths: Sequence[Path],
        read: Callable[[Path], Any],
        *,
        batch_size: int = 64,
        progress: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> FeatureSet:
        """Return the features of `image_paths`, encoding only what the store does not hold.

        Args:
            image_paths: N files, N >= 1; the same file may stand several times.
            read: Path -> PIL image; raises for a file that is no image.
            batch_size: Images a pass.
            progress: Called with (images done, images to encode) after each batch.
            should_stop: Asked between batches and while waiting for another process.

        Raises:
            FeatureCacheError: The folder cannot be written, or too little space is left.
            EncodingStopped: `should_stop` returned True.
        """
        return self.encode_contents(
            self._digests(image_paths, read, should_stop),
            image_paths,
            read,
            batch_size=batch_size,
            progress=progress,
            should_stop=should_stop,
        )

    def encode_contents(
        self,
        digests: Sequence[bytes],
        sources: Sequence[Source],
        read: Callable[[Source], Any],
        *,
        batch_size: int = 64,
        progress: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> FeatureSet:
        """Return the features of images that need not be files, as `encode`.

        Args:
            digests: SHA-256 of each image's bytes, N >= 1.
            sources: What `read` takes, N, in the same order.
            read: Source -> PIL image.
            batch_size: Images a pass.
            progress: Called with (images done, images to encode) after each batch.
            should_stop: Asked between batches and while waiting for another process.
        """
        if not sources or batch_size < 1:
            raise ValueError(
                f"expected images and batch_size >= 1, got {len(sources)} and {batch_size}"
            )
        if len(sources) != len(digests):
            raise ValueError(f"{len(sources)} images, but {len(digests)} digests")
        with self._locked(should_stop):
            row_of = self._recover()
            missing = {
                digest: source
                for digest, source in zip(digests, sources, strict=True)
                if digest not in row_of
            }
            self._check_space(len(missing))
            self._encode_missing(missing, row_of, read, batch_size, progress, should_stop)
        rows = np.array([row_of[digest] for digest in digests], dtype=np.int64)
        store = np.memmap(
            self.folder / "rows.bin", np.float16, "r", shape=(len(row_of), *self._row_shape)
        )
        image_features = np.asarray(store[:, 0])[rows].astype(np.float32)
        return FeatureSet(PatchRows(store, rows), image_features, len(missing))

    def estimate_bytes(self, num_images: int) -> int:
        """Disk space of `num_images` different images."""
        return num_images * (self._row_bytes + DIGEST_BYTES)

    def delete(self) -> None:
        """Delete this backbone's store; the images are encoded again when next needed."""
        if self.folder.is_dir():
            with self._locked(lambda: False):
                # Moved first: a process that waits for the lock makes itself a new store.
                doomed = self.folder.with_name(f".{self.folder.name}.{os.getpid()}")
                self.folder.rename(doomed)
                shutil.rmtree(doomed)

    def _digests(
        self, paths: Sequence[Path], read: Callable[[Path], Any], should_stop: Callable[[], bool]
    ) -> list[bytes]:
        def digest(path: Path) -> bytes:
            if should_stop():
                raise EncodingStopped("stopped while encoding images")
            try:
                return self._digest_of.pop(path, None) or bytes.fromhex(sha256_file(path))
            except OSError:
                read(path)  # its error says what the data room says of such a file
                raise

        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(digest, paths))

    def _check_space(self, num_missing: int) -> None:
        needed, free = self.estimate_bytes(num_missing), shutil.disk_usage(self.folder).free
        if needed > free:
            raise FeatureCacheError(
                f"{self.folder}: the features of {num_missing} images need {needed / 1e6:.0f} MB, "
                f"{free / 1e6:.0f} MB are free. Free space or move the cache."
            )

    def _encode_missing(
        self,
        missing: dict[bytes, Source],
        row_of: dict[bytes, int],
        read: Callable[[Source], Any],
        batch_size: int,
        progress: Callable[[int, int], None] | None,
        should_stop: Callable[[], bool],
    ) -> None:
        digests = list(missing)
        batches = [digests[i : i + batch_size] for i in range(0, len(digests), batch_size)]
        done = 0

        def prepare(digest: bytes) -> Tensor:
            return self._backbone.preprocess(read(missing[digest]))

        with ThreadPoolExecutor(_READERS) as pool:
            ahead = [pool.submit(prepare, digest) for digest in batches[0]] if batches else []
            for number, batch in enumerate(batches):
                if should_stop():
                    pool.shutdown(cancel_futures=True)
                    raise EncodingStopped("stopped while encoding images")
                images = torch.stack([future.result() for future in ahead])  # (B, 3, H, W)
                following = batches[number + 1] if number + 1 < len(batches) else []
                ahead = [pool.submit(prepare, digest) for digest in following]
                self._append(batch, images)
                row_of.update(zip(batch, range(len(row_of), len(row_of) + len(batch)), strict=True))
                done += len(batch)
                if progress is not None:
                    progress(done, len(digests))

    def _append(self, digests: list[bytes], images: Tensor) -> None:
        """Write a batch's rows, then its index entries."""
        features = self._backbone.encode_images(images)
        joined = torch.cat([features.image_features[:, None], features.patch_features], dim=1)
        rows = joined.to("cpu", torch.float16).numpy().tobytes()
        try:
            _append_durably(self.folder / "rows.bin", rows)
            _append_durably(self.folder / "index.bin", b"".join(digests))
        except OSError as error:
            self._recover()  # gives the space of a half-written batch back
            raise FeatureCacheError(
                f"{self.folder}: features cannot be written: {error.strerror}. Free space or move "
                "the cache; what was encoded so far is kept."
            ) from error

    def _recover(self) -> dict[bytes, int]:
        """Read the index; cut off what a crash left half done. Needs the lock."""
        if json.loads((self.folder / "meta.json").read_text(encoding="utf-8")) != self._meta:
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
    def _locked(self, should_stop: Callable[[], bool]) -> Iterator[None]:
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
