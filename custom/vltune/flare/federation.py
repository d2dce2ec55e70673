"""What the server needs to know of a job: rounds, quorum, timeouts, what it accepts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from vltune.robust_aggregation import RobustAggregation
from vltune.seed import derive_seed, torch_generator

WeightBy = Literal["num_examples", "uniform"]
METRICS = (
    "mAP",
    "accuracy",
    "soft_accuracy",
    "token_f1",
    "rouge_l",
    "preference_accuracy",
    "vqa_accuracy",
    "geneval",
)
"""Figures of a site that are larger where the model is better."""


class FederationError(ValueError):
    """A federation cannot go on; the message says which sites did what."""


@dataclass(frozen=True)
class FederationConfig:
    """The key `federation` of a job.

    Attributes:
        rounds: Rounds in total, those of a resumed run included.
        min_sites: Accepted updates (and sites that pass the handshake) below which the job ends.
        round_timeout_seconds: A site that has not answered by then is left out of the round.
        prepare_timeout_seconds: The same before round 0, where sites encode their images.
        weight_by: Weights of the average; num_examples as in the paper, or uniform.
        max_update_norm: Euclidean distance from the global model beyond which updates are refused.
        participation: Share of the sites asked in each round, drawn from the run's seed.
        metric: What the best global model is chosen by and the report shows: one of the sites'
            documented figures, larger is better.
        poll_seconds: How often an idle site asks for work; each round waits about as long for it.
        tensorboard: Stream the documented metrics to TensorBoard files at the server.
        doctor: Sites examine themselves before round 0; one where a check fails is left out.
        robust: What is done about updates that are meant to harm (docs/robust_aggregation.md).
    """

    rounds: int
    min_sites: int = 1
    round_timeout_seconds: float = 600.0
    prepare_timeout_seconds: float = 3600.0
    weight_by: WeightBy = "num_examples"
    max_update_norm: float = 1000.0
    participation: float = 1.0
    metric: str = "mAP"
    poll_seconds: float = 0.1
    tensorboard: bool = True
    doctor: bool = True
    robust: RobustAggregation = field(default_factory=RobustAggregation)

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.min_sites < 1:
            raise ValueError(
                f"rounds and min_sites must be >= 1, got {self.rounds} and {self.min_sites}"
            )
        for name in (
            "round_timeout_seconds",
            "prepare_timeout_seconds",
            "max_update_norm",
            "poll_seconds",
        ):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if self.metric not in METRICS:
            raise ValueError(f"metric is {self.metric!r}; expected one of {', '.join(METRICS)}")
        if not 0 < self.participation <= 1:
            raise ValueError(f"participation must be in (0, 1], got {self.participation}")
        self._check_robust()

    def _check_robust(self) -> None:
        robust, needed = self.robust, self.robust.sites_needed
        if self.min_sites < needed:
            raise ValueError(
                f"min_sites is {self.min_sites}, but robust.rule {robust.rule} needs {needed} "
                "updates in every round. Raise min_sites, or ask less of the rule."
            )
        if robust.weighted and self.weight_by == "uniform":
            raise ValueError("robust.weighted has no effect where weight_by is uniform")


def sites_of_round(
    sites: Sequence[str], config: FederationConfig, run_seed: int, round_number: int
) -> list[str]:
    """Draw the sites of one round, never fewer than `min_sites`; sorted by name."""
    wanted = max(config.min_sites, math.ceil(config.participation * len(sites) - 1e-9))
    ordered = sorted(sites)
    if wanted >= len(ordered):
        return ordered
    generator = torch_generator(derive_seed(run_seed, "server", round_number, "participation"))
    chosen = torch.randperm(len(ordered), generator=generator)[:wanted]
    return sorted(ordered[int(index)] for index in chosen)
