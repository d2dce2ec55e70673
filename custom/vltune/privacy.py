"""Differential privacy of both kinds: the job's key `privacy`, and what it does to an update.

Site level, one Gaussian mechanism a round on what leaves the site (the clipping of McMahan et al.
2018, arXiv 1710.06963, with the noise at the site, not at the server):

    x_0 + min(1, c / |x - x_0|) (x - x_0) + z c g,   g ~ N(0, I)

Record level: DP-SGD inside the site's training (`private_training`). docs/differential_privacy.md
says what each promises to whom, and what it leaves out.
"""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vltune.robust_rules import clip_update
from vltune.seed import torch_generator

Level = Literal["none", "site", "record"]
_VALUES = ("noise_multiplier", "clip_norm", "delta")


class PrivacyError(ValueError):
    """A promise of privacy cannot be kept or made; the message says why and holds no data."""


@dataclass(frozen=True)
class PrivacyConfig:
    """The job's choice.

    Attributes:
        level: `site` hides whether a site took part with its data; `record` hides one training
            image of a site; `none` hides nothing.
        noise_multiplier: z, standard deviation of the noise in units of `clip_norm`, > 0.
        clip_norm: c, Euclidean bound: site level on the update, record level on each image's
            gradient.
        delta: Of (epsilon, delta), in (0, 1); record level needs it below 1 / training images.
        max_epsilon: A site takes no part in a round that would bring it above; null: no limit.
    """

    level: Level = "none"
    noise_multiplier: float | None = None
    clip_norm: float | None = None
    delta: float | None = None
    max_epsilon: float | None = None

    def __post_init__(self) -> None:
        if self.level == "none":
            given = [name for name in (*_VALUES, "max_epsilon") if getattr(self, name) is not None]
            if given:
                raise PrivacyError(
                    f"privacy.level none does not use {', '.join(given)}. Take the keys away, or "
                    "say level site or record."
                )
            return
        for name in _VALUES:
            value = getattr(self, name)
            if value is None or not 0 < value < math.inf:
                raise PrivacyError(
                    f"privacy.level {self.level} needs {name} > 0 and finite, got {value}"
                )
        if self.bounds[2] >= 1:
            raise PrivacyError(f"privacy.delta must be in (0, 1), got {self.delta}")
        if self.max_epsilon is not None and not 0 < self.max_epsilon < math.inf:
            raise PrivacyError(
                f"privacy.max_epsilon must be > 0 and finite, got {self.max_epsilon}"
            )

    @property
    def bounds(self) -> tuple[float, float, float]:
        """noise_multiplier, clip_norm and delta of a level that has them.

        Raises:
            PrivacyError: Level none.
        """
        if self.noise_multiplier is None or self.clip_norm is None or self.delta is None:
            raise PrivacyError("privacy.level none has neither noise nor bound nor delta")
        return self.noise_multiplier, self.clip_norm, self.delta


def secret_generator() -> torch.Generator:
    """A generator that nobody else can follow: the run's seed is known to the server."""
    return torch_generator(secrets.randbits(63))


def privatise_update(
    sent_out: Mapping[str, Tensor],
    trained: Mapping[str, Tensor],
    *,
    clip_norm: float,
    noise_multiplier: float,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Clip a site's update and add noise; the module's formula.

    Args:
        sent_out: The global model x_0.
        trained: The site's, of the same names and shapes.
        clip_norm: c > 0.
        noise_multiplier: z >= 0; 0 only clips and promises nothing.
        generator: Of the noise; for anything but tests `secret_generator()`.

    Returns:
        By name, fp32.
    """
    clipped = clip_update(sent_out, trained, clip_norm)
    scale = noise_multiplier * clip_norm
    if scale == 0:
        return clipped
    return {
        name: (clipped[name].double() + scale * _noise(clipped[name], generator)).float()
        for name in sorted(clipped)
    }


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64)
