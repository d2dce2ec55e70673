"""A site's images as the frozen tower sees them, beside their labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vltune.backbones.clip import ClipBackbone
from vltune.data.multilabel import MultiLabelSamples, load_coco_instances, read_image
from vltune.evaluation import predict_scores
from vltune.features import EncodingStopped, FeatureCache, FeatureSet
from vltune.participant import ShouldStop
from vltune.prompts import zero_shot_text_features
from vltune.site_config import SiteConfig, Split
from vltune.training import TrainingStopped


class FeatureBatch(NamedTuple):
    """Frozen features and labels of some images.

    Attributes:
        patch_features: (B, M, D), unit norm.
        image_features: (B, D), unit norm.
        labels: (B, C), 1, 0 or -1 for unknown.
    """

    patch_features: Tensor
    image_features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class EncodedSplit:
    """Samples and their frozen features, in the same order."""

    samples: MultiLabelSamples
    features: FeatureSet
    labels: Tensor

    def batch_at(self, indices: Tensor) -> FeatureBatch:
        """Read the features of some samples from the memory-mapped cache as fp32."""
        rows = indices.numpy()
        return FeatureBatch(
            torch.from_numpy(self.features.patch_features[rows]).float(),
            torch.from_numpy(self.features.image_features[rows]).float(),
            self.labels[indices],
        )


def encode_split(
    backbone: ClipBackbone,
    site: SiteConfig,
    split: Split,
    classnames: Sequence[str],
    *,
    batch_size: int,
    should_stop: ShouldStop,
) -> EncodedSplit:
    """Read a split's labels and its frozen features, encoding what the cache does not hold.

    An image whose features are in the cache was decoded before and is not decoded again.

    Raises:
        AnnotationError: The annotation file is wrong.
        ImageError: An image is missing or unreadable and the site says `stop`.
        TrainingStopped: `should_stop` returned True.
    """
    cache = FeatureCache(site.cache_dir, backbone)

    def already_read(path: Path) -> bool:
        if should_stop():
            raise TrainingStopped("stopped while reading images")
        return cache.holds(path)

    samples = load_coco_instances(
        split.annotations,
        split.images,
        classnames,
        unlabelled=site.unlabelled,
        rename=site.rename,
        on_bad_image=site.on_bad_image,
        already_read=already_read,
    )
    try:
        features = cache.encode(
            samples.image_paths, read_image, batch_size=batch_size, should_stop=should_stop
        )
    except EncodingStopped as stopped:
        raise TrainingStopped(str(stopped)) from stopped
    return EncodedSplit(samples, features, torch.from_numpy(samples.labels.astype("int64")))


def zero_shot_scores(
    backbone: ClipBackbone, split: EncodedSplit, classnames: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Scores of CLIP without any training, from "a photo of a CLASS.".

    Returns:
        `pooled`: sigmoid of the scaled cosine of the image feature, (N, C); `patch`: the same of
        the highest patch. Sigmoids keep the order of cosines; they are no calibrated probabilities.
    """
    text = zero_shot_text_features(backbone, classnames)

    def pooled(batch: FeatureBatch) -> Tensor:
        return batch.image_features @ text.T

    def patch(batch: FeatureBatch) -> Tensor:
        return (batch.patch_features @ text.T).amax(dim=1)

    return {
        name: predict_scores(
            lambda rows, read=read: 10 * read(split.batch_at(rows)),  # type: ignore[misc] # default binds
            len(split.labels),
        )
        for name, read in (("pooled", pooled), ("patch", patch))
    }
