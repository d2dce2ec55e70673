"""The only local training loop. It sees a three-method protocol, never an algorithm."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from vltune.config import ConfigError
from vltune.data.multilabel import batches
from vltune.seed import torch_generator

BatchT = TypeVar("BatchT", contravariant=True)


class TrainingStopped(Exception):  # noqa: N818 - not an error: the admin asked for it
    """`should_stop` returned True in the middle of work; nothing of this task is kept."""


class DivergedError(ValueError):
    """The loss or an update is NaN or infinite; the message says at which step."""


class Learner(Protocol[BatchT]):
    """What the loop needs to know of a model."""

    def loss(self, batch: BatchT) -> Tensor:
        """Scalar loss of one batch."""

    def shared_keys(self) -> frozenset[str]:
        """Names of the tensors that leave the site."""

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What the optimiser moves: shared and personal tensors."""


@dataclass(frozen=True)
class TrainingConfig:
    """Optimiser and local schedule of one round.

    Attributes:
        optimizer: The paper uses sgd with learning_rate 1e-3 (arXiv 2605.28347); adamw measured
            better here.
        learning_rate: At the first step of the first round.
        schedule: `constant`, or `cosine`: half a cosine down to zero over all of the federation's
            rounds. A run that is resumed for more rounds continues on the longer curve.
        momentum: Of sgd.
        weight_decay: Decoupled for adamw, L2 for sgd.
        batch_size: Images a step.
        local_epochs: Passes over the site's data in one round.
        max_gradient_norm: Gradients are clipped to this Euclidean norm.
    """

    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: float = 3e-3
    schedule: Literal["constant", "cosine"] = "constant"
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch_size: int = 32
    local_epochs: int = 1
    max_gradient_norm: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.batch_size < 1 or self.local_epochs < 1:
            raise ConfigError(
                "batch_size and local_epochs must be >= 1, "
                f"got {self.batch_size} and {self.local_epochs}"
            )

    def rate_at(self, progress: float) -> float:
        """Learning rate after a share of all training; 0 before the first step."""
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclass(frozen=True)
class RoundPlan:
    """How one round trains.

    Attributes:
        config: Optimiser and local schedule.
        seed: Of the order of samples and of every random draw in the model.
        span: Shares of the whole training at which this round begins and ends, for the schedule.
        optimizer: Of the learner's parameters, to go on with; None starts a new one.
    """

    config: TrainingConfig
    seed: int
    span: tuple[float, float] = (0.0, 1.0)
    optimizer: torch.optim.Optimizer | None = None


@dataclass(frozen=True)
class TrainResult:
    """Mean loss over steps, number of steps and wall time of one round's local training."""

    loss: float
    steps: int
    seconds: float


def round_span(
    config: TrainingConfig, round_number: int, num_rounds: int | None
) -> tuple[float, float]:
    """Shares of the whole training at which a round begins and ends.

    Raises:
        ConfigError: The learning rate falls over the rounds, but their number is not known.
    """
    if num_rounds is None:
        if config.schedule != "constant":
            raise ConfigError(
                f"training.schedule is {config.schedule}, but the job does not say num_rounds; "
                "export the job again, or take schedule: constant"
            )
        return 0.0, 1.0
    return round_number / num_rounds, (round_number + 1) / num_rounds


def make_optimizer(parameters: list[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    """Build a new optimiser, which remembers nothing."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, config.learning_rate, config.momentum, weight_decay=config.weight_decay
        )
    return torch.optim.AdamW(parameters, config.learning_rate, weight_decay=config.weight_decay)


def local_train(
    learner: Learner[BatchT],
    *,
    num_examples: int,
    batch_at: Callable[[Tensor], BatchT],
    plan: RoundPlan,
    should_stop: Callable[[], bool],
    backward: Callable[[BatchT], Tensor] | None = None,
) -> TrainResult:
    """Train for `plan.config.local_epochs` passes.

    Args:
        learner: The model; its parameters are changed in place.
        num_examples: Training images at this site.
        batch_at: Sample indices, (b,) int64 -> batch.
        plan: Optimiser, schedule and seed.
        should_stop: Asked before each step.
        backward: Adds a batch's gradients and returns its loss, in place of
            `learner.loss(batch).backward()`.

    Returns:
        Mean loss, steps, seconds.

    Raises:
        TrainingStopped: `should_stop` returned True.
        DivergedError: The loss is not finite.
    """
    began = time.perf_counter()
    parameters = learner.trainable_parameters()
    config = plan.config
    optimizer = plan.optimizer or make_optimizer(parameters, config)
    generator = torch_generator(plan.seed)
    torch.manual_seed(plan.seed)
    losses: list[float] = []
    take = backward or partial(_backward, learner)
    start, end = plan.span
    num_steps = config.local_epochs * math.ceil(num_examples / config.batch_size)
    for _ in range(config.local_epochs):
        for indices in batches(num_examples, config.batch_size, generator):
            if should_stop():
                raise TrainingStopped(f"stopped after {len(losses)} steps")
            optimizer.zero_grad(set_to_none=True)
            loss = take(batch_at(indices))
            if not torch.isfinite(loss):
                raise DivergedError(
                    f"loss is {loss.item()} at step {len(losses)} of this round; "
                    f"lower learning_rate (now {config.learning_rate})"
                )
            for group in optimizer.param_groups:
                group["lr"] = config.rate_at(start + (end - start) * len(losses) / num_steps)
            nn.utils.clip_grad_norm_(parameters, config.max_gradient_norm)
            optimizer.step()
            losses.append(loss.item())
    return TrainResult(math.fsum(losses) / len(losses), len(losses), time.perf_counter() - began)


def _backward(learner: Learner[BatchT], batch: BatchT) -> Tensor:
    loss = learner.loss(batch)
    loss.backward()  # type: ignore[no-untyped-call] # torch's stub
    return loss.detach()
