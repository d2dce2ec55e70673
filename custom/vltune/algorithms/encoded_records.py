"""A site's prompts and answers beside the image tokens of the frozen vision tower."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from vltune.data.image_sources import read_source
from vltune.data.image_text import ImageTextSamples, Record
from vltune.features import EncodingStopped, FeatureCache, FeatureSet
from vltune.participant import ShouldStop
from vltune.training import TrainingStopped


class VisionTower(Protocol):
    """What the feature cache needs of a vision-language backbone."""

    @property
    def fingerprint(self) -> str:
        """Hash of architecture and weights."""

    @property
    def preprocess_fingerprint(self) -> str:
        """Hash of the preprocessing."""

    @property
    def num_image_tokens(self) -> int:
        """M, at least 2."""

    @property
    def image_token_width(self) -> int:
        """D."""

    @property
    def preprocess(self) -> Callable[[Any], Tensor]:
        """PIL image -> (3, H, W)."""

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> image tokens (B, M, D)."""


class AnswerBatch(NamedTuple):
    """Some records with their images.

    Attributes:
        image_tokens: (B, M, D) fp32.
        prompts: B texts.
        answers: B texts, the ones to learn.
        rejected: B texts, or None where a record has no rejected answer.
        indices: Rows of the split, (B,) int64.
    """

    image_tokens: Tensor
    prompts: list[str]
    answers: list[str]
    rejected: list[str | None]
    indices: Tensor


@dataclass(frozen=True)
class EncodedRecords:
    """Records and the frozen tokens of their images; several records share one image."""

    records: tuple[Record, ...]
    features: FeatureSet

    def __len__(self) -> int:
        return len(self.records)

    def batch_at(self, indices: Tensor) -> AnswerBatch:
        """Read some records with their image tokens from the memory-mapped cache as fp32."""
        chosen = [self.records[index] for index in indices.tolist()]
        rows = [record.image for record in chosen]
        first = torch.from_numpy(self.features.image_features[rows]).float()
        others = torch.from_numpy(self.features.patch_features[rows]).float()
        return AnswerBatch(
            torch.cat([first[:, None], others], dim=1),
            [record.prompt for record in chosen],
            [record.answers[0] for record in chosen],
            [record.rejected for record in chosen],
            indices,
        )


class _CacheView:
    """A vision tower as `FeatureCache` knows backbones: one image feature, then patch features.

    The first image token stands in the place of the image feature; nothing is added or lost.
    """

    def __init__(self, tower: VisionTower) -> None:
        self._tower = tower
        self.fingerprint = tower.fingerprint
        self.preprocess_fingerprint = tower.preprocess_fingerprint
        self.precision = "float32"
        self.num_patches = tower.num_image_tokens - 1
        self.preprocess = tower.preprocess
        self.embed_dim = tower.image_token_width

    def encode_images(self, images: Tensor) -> "_Tokens":
        tokens = self._tower.encode_images(images)
        return _Tokens(tokens[:, 1:], tokens[:, 0])


class _Tokens(NamedTuple):
    patch_features: Tensor
    image_features: Tensor


class TokenCache:
    """Image tokens of one vision tower, each content encoded once.

    Args:
        folder: The site's cache folder.
        tower: Frozen.
    """

    def __init__(self, folder: Path, tower: VisionTower) -> None:
        self._cache = FeatureCache(folder, _CacheView(tower))

    def holds(self, digest: bytes) -> bool:
        """Whether this content was decoded and encoded before."""
        return self._cache.holds_content(digest)

    def encode(
        self, samples: ImageTextSamples, *, batch_size: int, should_stop: ShouldStop
    ) -> EncodedRecords:
        """Return a split's records with their image tokens, encoding what is not there yet.

        Raises:
            FeatureCacheError: The folder cannot be written.
            TrainingStopped: `should_stop` returned True.
        """
        try:
            features = self._cache.encode_contents(
                samples.digests,
                samples.images,
                read_source,
                batch_size=batch_size,
                should_stop=should_stop,
            )
        except EncodingStopped as stopped:
            raise TrainingStopped(str(stopped)) from stopped
        return EncodedRecords(samples.records, features)
