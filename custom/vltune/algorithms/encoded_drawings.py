"""A site's captioned images as a generator learns them: captions beside frozen targets."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vltune.algorithms.encoded_records import ContentCache, kept_rows
from vltune.backbones.unified import UnifiedBackbone
from vltune.data.image_text import ImageTextSamples, Record
from vltune.features import FeatureSet
from vltune.participant import ShouldStop

_BASE = 1024
"""Codes are kept as two digits to this base: float16 holds whole numbers to 2048 exactly."""


class DrawingBatch(NamedTuple):
    """Some captions with their images' targets.

    Attributes:
        targets: (B, T) int64 codes or (B, T, D) fp32 features.
        prompts: B texts.
    """

    targets: Tensor
    prompts: list[str]


@dataclass(frozen=True)
class EncodedDrawings:
    """Captions and the frozen targets of their images; several captions share one image."""

    records: tuple[Record, ...]
    features: FeatureSet
    are_codes: bool

    def __len__(self) -> int:
        return len(self.records)

    def batch_at(self, indices: Tensor) -> DrawingBatch:
        """Read some captions with their targets from the memory-mapped cache."""
        chosen = [self.records[index] for index in indices.tolist()]
        rows = [record.image for record in chosen]
        kept = kept_rows(self.features, rows)  # (B, T, D)
        if self.are_codes:
            digits = kept.long()
            kept = digits[..., 0] * _BASE + digits[..., 1]
        return DrawingBatch(kept, [record.prompt for record in chosen])


class _TargetTower:
    """A generator's targets as `FeatureCache` knows features: (B, T, D)."""

    precision = "float32"

    def __init__(self, backbone: UnifiedBackbone) -> None:
        self._backbone = backbone
        self.fingerprint = f"{backbone.fingerprint} targets"
        self.preprocess_fingerprint = backbone.preprocess_fingerprint
        self.preprocess: Callable[[Any], Tensor] = backbone.preprocess
        self.are_codes = not backbone.target_dtype.is_floating_point
        self.num_patches = backbone.target_shape[0] - 1
        self.embed_dim = 2 if self.are_codes else backbone.target_shape[1]

    def encode_images(self, images: Tensor) -> "_Rows":
        targets = self._backbone.encode_targets(images)
        if self.are_codes:
            targets = torch.stack([targets // _BASE, targets % _BASE], dim=-1).float()
        return _Rows(targets[:, 1:], targets[:, 0])


class _Rows(NamedTuple):
    patch_features: Tensor
    image_features: Tensor


class TargetCache(ContentCache):
    """Targets of one generator.

    Args:
        folder: The site's cache folder.
        backbone: Frozen.
    """

    def __init__(self, folder: Path, backbone: UnifiedBackbone) -> None:
        tower = _TargetTower(backbone)
        super().__init__(folder, tower)
        self._are_codes = tower.are_codes

    def encode(
        self, samples: ImageTextSamples, *, batch_size: int, should_stop: ShouldStop
    ) -> EncodedDrawings:
        """A split's captions with their targets; see `features`."""
        features = self.features(samples, batch_size=batch_size, should_stop=should_stop)
        return EncodedDrawings(samples.records, features, self._are_codes)
