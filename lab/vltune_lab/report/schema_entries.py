"""Single entries of `summary.json`'s lists, and the checks of its numbers."""

import math
from dataclasses import dataclass
from typing import Literal


def check_fractions(**values: float | None) -> None:
    """Refuse a metric outside [0, 1]: percent, most likely."""
    for name, value in values.items():
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}, expected a fraction in [0, 1] or null")


def check_amounts(**values: float | None) -> None:
    """Refuse a negative or infinite count, size or time."""
    for name, value in values.items():
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}, expected a number >= 0")


@dataclass(frozen=True)
class RejectedUpdate:
    """An update that the server refused, and why."""

    round: int
    site: str
    reason: str


@dataclass(frozen=True)
class RobustDecision(RejectedUpdate):
    """What a rule of `federation.robust` did to an accepted update, and why."""

    action: Literal["left_out", "clipped"]


@dataclass(frozen=True)
class SitePrivacy:
    """Differential privacy that a site has spent in this run, as the site says.

    Attributes:
        site: FLARE name.
        level: `site` or `record`: what is hidden.
        epsilon: Of all its rounds together.
        delta: Of the job.
    """

    site: str
    level: Literal["site", "record"]
    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        check_amounts(epsilon=self.epsilon)
        check_fractions(delta=self.delta)
