"""What a multi-label job tells a site, and what its model offers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from vltune.algorithms.encoded_split import FeatureBatch
from vltune.backbones.clip import BackboneConfig, ClipBackbone
from vltune.conditions import ConditionSet
from vltune.config import ConfigError
from vltune.privacy import PrivacyConfig
from vltune.training import TrainingConfig


class MultiLabelModel(Protocol):
    """What a method's `nn.Module` offers besides being one."""

    def loss(self, batch: FeatureBatch) -> Tensor:
        """Scalar loss."""

    def shared_keys(self) -> frozenset[str]:
        """Tensors that leave the site."""

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Parameters that the optimiser moves."""

    def predictor(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Encode texts once; return (patch_features, image_features) -> logits (B, C)."""


ModelBuilder = Callable[[ClipBackbone, ConditionSet, int], "MultiLabelModel"]


@dataclass(frozen=True)
class MultiLabelJob:
    """The part of a job that a site needs; the rest is for the server.

    Attributes:
        seed: Run seed.
        classnames: C class names, in order.
        conditions: Content of the condition cache.
        backbone: Frozen CLIP.
        training: Optimiser and local schedule.
        num_rounds: The federation's, which a learning rate that falls over the rounds needs.
        threshold: Of CF1 and OF1.
        min_cell: Classes with fewer present or absent images are left out of the histograms.
        min_interval: Smallest number of images that a score interval of a histogram describes.
        encode_batch_size: Images a pass through the frozen tower.
        privacy: Level record trains by DP-SGD; level site is the executor's.
    """

    seed: int
    classnames: tuple[str, ...]
    conditions: dict[str, Any]
    backbone: BackboneConfig
    training: TrainingConfig
    num_rounds: int | None = None
    threshold: float = 0.5
    min_cell: int = 5
    min_interval: int = 3
    encode_batch_size: int = 64
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold must be in [0, 1], got {self.threshold}")
        if min(self.min_cell, self.min_interval, self.encode_batch_size) < 1:
            raise ConfigError(
                "min_cell, min_interval and encode_batch_size must be >= 1, got "
                f"{self.min_cell}, {self.min_interval} and {self.encode_batch_size}"
            )
