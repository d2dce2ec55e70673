"""A site's prompts and answers beside the image tokens of the frozen vision tower."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vltune.backbones.vision_language import VisionLanguageBackbone
from vltune.data.image_sources import read_source
from vltune.data.image_text import ImageTextSamples, Record
from vltune.data.rows import RecordError
from vltune.features import EncodingStopped, FeatureCache, FeatureSet, ImageTower
from vltune.participant import ShouldStop
from vltune.training import TrainingStopped

log = logging.getLogger(__name__)


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
        return AnswerBatch(
            kept_rows(self.features, rows),
            [record.prompt for record in chosen],
            [record.answers[0] for record in chosen],
            [record.rejected for record in chosen],
            indices,
        )


def kept_rows(features: FeatureSet, rows: Sequence[int]) -> Tensor:
    """Whole rows of the cache, (B, 1 + M, D) fp32."""
    first = torch.from_numpy(features.image_features[rows]).float()
    others = torch.from_numpy(features.patch_features[rows]).float()
    return torch.cat([first[:, None], others], dim=1)


class _CacheView:
    """A vision tower as `FeatureCache` knows backbones: one image feature, then patch features.

    The first image token stands in the place of the image feature; nothing is added or lost.
    """

    def __init__(self, tower: VisionLanguageBackbone) -> None:
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


def fitting(
    samples: ImageTextSamples,
    backbone: VisionLanguageBackbone,
    *,
    max_share: float,
    max_answer_tokens: int,
) -> ImageTextSamples:
    """Leave out records with more tokens than the model has positions, and count them.

    Args:
        samples: One part of a site's data.
        backbone: Knows its tokens and positions.
        max_share: Of the records that may be left out.
        max_answer_tokens: What the model may generate; longer answers stay, with a warning.

    Raises:
        RecordError: More than `max_share` are too long, or all.
    """
    records, count = samples.records, backbone.count_tokens
    prompts = count([record.prompt for record in records])
    answers = count([record.answers[0] for record in records])
    longest = [
        max(pair) for pair in zip(answers, count([r.rejected or "" for r in records]), strict=True)
    ]
    most = backbone.max_prompt_tokens, backbone.max_answer_tokens
    kept = tuple(
        record
        for record, prompt, answer in zip(records, prompts, longest, strict=True)
        if prompt <= most[0] and answer <= most[1]
    )
    num_long = len(records) - len(kept)
    if num_long > max_share * len(records) or not kept:
        raise RecordError(
            f"{num_long} of {len(records)} records are too long: the model takes {most[0]} tokens "
            f"of prompt and {most[1]} of answer, the longest have {max(prompts)} and "
            f"{max(longest)}. Shorten them, or raise max_skipped_share in vltune_site.yaml."
        )
    num_cut = sum(length > max_answer_tokens for length in answers)
    if num_long or num_cut:
        log.warning(
            "%d of %d records are too long and left out; answers of %d are longer than "
            "max_answer_tokens %d, so what is generated for them is cut",
            num_long,
            len(records),
            num_cut,
            max_answer_tokens,
        )
    return replace(samples, records=kept)


def fitting_prompts(
    samples: ImageTextSamples, backbone: VisionLanguageBackbone, *, max_share: float
) -> ImageTextSamples:
    """Leave out captions with more tokens than the model's prompts may have, and count them.

    Raises:
        RecordError: More than `max_share` are too long, or all.
    """
    lengths = backbone.count_tokens([record.prompt for record in samples.records])
    most = backbone.max_prompt_tokens
    pairs = zip(samples.records, lengths, strict=True)
    kept = tuple(record for record, length in pairs if length <= most)
    num_long = len(lengths) - len(kept)
    if num_long > max_share * len(lengths) or not kept:
        raise RecordError(
            f"{num_long} of {len(lengths)} captions are too long: the model takes {most} tokens of "
            f"prompt, the longest has {max(lengths)}. Shorten them, or raise max_skipped_share in "
            "vltune_site.yaml."
        )
    if num_long:
        log.warning("%d of %d captions are too long and left out", num_long, len(lengths))
    return replace(samples, records=kept)


def count_too_long(prompts: Sequence[str], backbone: VisionLanguageBackbone) -> tuple[int, int]:
    """How many prompts have more tokens than the model takes, and the most tokens of one."""
    lengths = backbone.count_tokens(prompts)
    return sum(length > backbone.max_prompt_tokens for length in lengths), max(lengths, default=0)


class ContentCache:
    """What a frozen tower gives for images, each content encoded once.

    Args:
        folder: The site's cache folder.
        tower: The tower as `FeatureCache` knows backbones.
    """

    def __init__(self, folder: Path, tower: ImageTower) -> None:
        self._cache = FeatureCache(folder, tower)

    def holds(self, digest: bytes) -> bool:
        """Whether this content was decoded and encoded before."""
        return self._cache.holds_content(digest)

    def estimate_bytes(self, num_images: int) -> int:
        """Disk space of `num_images` different images."""
        return self._cache.estimate_bytes(num_images)

    def features(
        self, samples: ImageTextSamples, *, batch_size: int, should_stop: ShouldStop
    ) -> FeatureSet:
        """Features of a split's images, encoding what is not there yet.

        Raises:
            FeatureCacheError: The folder cannot be written.
            TrainingStopped: `should_stop` returned True.
        """
        try:
            return self._cache.encode_contents(
                samples.digests,
                samples.images,
                read_source,
                batch_size=batch_size,
                should_stop=should_stop,
            )
        except EncodingStopped as stopped:
            raise TrainingStopped(str(stopped)) from stopped


class TokenCache(ContentCache):
    """Image tokens of one vision tower.

    Args:
        folder: The site's cache folder.
        tower: Frozen.
    """

    def __init__(self, folder: Path, tower: VisionLanguageBackbone) -> None:
        super().__init__(folder, _CacheView(tower))

    def encode(
        self, samples: ImageTextSamples, *, batch_size: int, should_stop: ShouldStop
    ) -> EncodedRecords:
        """A split's records with their image tokens; see `features`."""
        features = self.features(samples, batch_size=batch_size, should_stop=should_stop)
        return EncodedRecords(samples.records, features)
