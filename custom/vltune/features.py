"""Frozen features: encode each image once, keep the result on disk, memory-mapped.

A store (`feature_store`) belongs to one (backbone, preprocessing, precision); a row to one image
*content*, so that copies share a row and a changed file is encoded again. A row is (1 + M) x D
float16: image feature, then patch features. The features describe personal images: keep the folder
as safe as the images.
"""

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vltune.feature_store import EncodingStopped, FeatureCacheError, FeatureStore, Half
from vltune.files import sha256_file

__all__ = [
    "EncodingStopped",
    "FeatureCache",
    "FeatureCacheError",
    "FeatureSet",
    "ImageTower",
    "PatchRows",
]

logger = logging.getLogger(__name__)

FORMAT = 1
_READERS = min(4, os.cpu_count() or 1)

Source = TypeVar("Source")
"""What an image is read from: a path, or a handle of the data room."""


class ImageFeatures(Protocol):
    """Features of B images."""

    @property
    def image_features(self) -> Tensor:
        """(B, D)."""

    @property
    def patch_features(self) -> Tensor:
        """(B, M, D)."""


class ImageTower(Protocol):
    """What the cache needs of a frozen backbone."""

    @property
    def fingerprint(self) -> str:
        """Hash of architecture and weights."""

    @property
    def preprocess_fingerprint(self) -> str:
        """Hash of the preprocessing."""

    @property
    def precision(self) -> str:
        """Arithmetic of the tower."""

    @property
    def num_patches(self) -> int:
        """M."""

    @property
    def embed_dim(self) -> int:
        """D."""

    @property
    def preprocess(self) -> Callable[[Any], Tensor]:
        """PIL image -> (3, H, W)."""

    def encode_images(self, images: Tensor) -> ImageFeatures:
        """(B, 3, H, W) -> features."""


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
        patch_features: (N, M, D) float16 on disk, as the backbone gave them up to rounding.
        image_features: (N, D) float32 in memory, rounded to float16 on the way.
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

    def __init__(self, folder: Path, backbone: ImageTower) -> None:
        """Open or create the store of `backbone` below `folder`; nothing is encoded yet."""
        self._backbone = backbone
        meta = {
            "format": FORMAT,
            "backbone": backbone.fingerprint,
            "preprocessing": backbone.preprocess_fingerprint,
            "precision": backbone.precision,
            "num_patches": backbone.num_patches,
            "embed_dim": backbone.embed_dim,
        }
        row_shape = (1 + backbone.num_patches, backbone.embed_dim)
        self._store = FeatureStore(folder, meta, row_shape)
        self.folder = self._store.folder
        self._digest_of: dict[Path, bytes] = {}

    def holds(self, path: Path) -> bool:
        """Whether the store holds a file of this content; False for a file that cannot be read.

        The next `encode` takes the file to be what it was then and does not hash it again.
        """
        try:
            digest = bytes.fromhex(sha256_file(path)) if self._store.held else b""
        except OSError:
            return False
        if digest in self._store.held:
            self._digest_of[path] = digest
        return digest in self._store.held

    def holds_content(self, digest: bytes) -> bool:
        """Whether the store holds the content of this SHA-256."""
        return digest in self._store.held

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
        with self._store.locked(should_stop):
            row_of = self._store.recover()
            missing = {
                digest: source
                for digest, source in zip(digests, sources, strict=True)
                if digest not in row_of
            }
            self._store.check_space(len(missing))
            self._encode_missing(missing, row_of, read, batch_size, progress, should_stop)
        rows = np.array([row_of[digest] for digest in digests], dtype=np.int64)
        store = self._store.rows(len(row_of))
        image_features = np.asarray(store[:, 0])[rows].astype(np.float32)
        return FeatureSet(PatchRows(store, rows), image_features, len(missing))

    def estimate_bytes(self, num_images: int) -> int:
        """Disk space of `num_images` different images."""
        return self._store.estimate_bytes(num_images)

    def delete(self) -> None:
        """Delete this backbone's store; the images are encoded again when next needed."""
        self._store.delete()

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
                self._store.append(batch, self._encode_batch(images))
                row_of.update(zip(batch, range(len(row_of), len(row_of) + len(batch)), strict=True))
                done += len(batch)
                if progress is not None:
                    progress(done, len(digests))

    def _encode_batch(self, images: Tensor) -> Half:
        """Rows of a batch, (B, 1 + M, D): image feature, then patch features."""
        features = self._backbone.encode_images(images)
        joined = torch.cat([features.image_features[:, None], features.patch_features], dim=1)
        rows: Half = joined.to("cpu", torch.float16).numpy()
        return rows
