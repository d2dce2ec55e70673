r"""Record-level differential privacy: DP-SGD (Abadi et al. 2016, arXiv 1607.00133, Algorithm 1).

Each step draws every image with probability q = batch_size / N (Poisson), and moves by

    g = (sum_i min(1, c / |g_i|) g_i + z c n) / (q N),   n ~ N(0, I)

over all trained parameters at once. Gradients of single images come from single losses over one
shared encoding of the texts. Opacus' GradSampleModule does not fit here: its hooks take the first
axis of a layer's input for the images, but the text tower's is prompts, and prompts and adapters
are parameters without a layer. `torch.func.vmap` does not either: the transport solver asks its
values when to stop. So the accountant alone is Opacus'.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from vltune.privacy import PrivacyConfig, PrivacyError, secret_generator
from vltune.privacy_ledger import PrivacyLedger
from vltune.training import (
    DivergedError,
    Learner,
    RoundPlan,
    TrainingConfig,
    TrainingStopped,
    TrainResult,
    make_optimizer,
)

BatchT = TypeVar("BatchT", contravariant=True)


class PrivateLearner(Learner[BatchT], Protocol[BatchT]):
    """A model whose loss is a mean over images."""

    def example_losses(self, batch: BatchT) -> Sequence[Tensor]:
        """One scalar loss an image, none of which depends on another image."""


class Sampling(NamedTuple):
    """Chance of an image to be in a step, and the steps of one round."""

    rate: float
    steps: int


def sampling_of(config: TrainingConfig, num_examples: int) -> Sampling:
    """As many steps as without privacy; a batch has `batch_size` images on average."""
    steps = config.local_epochs * math.ceil(num_examples / config.batch_size)
    return Sampling(min(1.0, config.batch_size / num_examples), steps)


def private_train(
    learner: PrivateLearner[BatchT],
    *,
    num_examples: int,
    batch_at: Callable[[Tensor], BatchT],
    plan: RoundPlan,
    privacy: PrivacyConfig,
    ledger: PrivacyLedger,
    should_stop: Callable[[], bool],
) -> TrainResult:
    """One round of DP-SGD; charged before its first step.

    `plan.seed` is not used: the server knows it, and the noise and the draw of images must be the
    site's secret. `max_gradient_norm` does not apply.

    Returns:
        Loss NaN (a mean of images' losses would tell of them), steps, seconds.

    Raises:
        PrivacyError: delta is not below 1 / `num_examples`, or the budget is spent.
        TrainingStopped: `should_stop` returned True.
        DivergedError: A gradient is not finite.
    """
    began = time.perf_counter()
    noise_multiplier, clip_norm, delta = privacy.bounds
    if delta * num_examples >= 1:
        raise PrivacyError(
            f"privacy.delta is {delta:g}, but with {num_examples} training images it must be below "
            f"{1 / num_examples:.2g}"
        )
    rate, steps = sampling_of(plan.config, num_examples)
    ledger.charge(rate, steps)
    parameters = learner.trainable_parameters()
    optimizer = plan.optimizer or make_optimizer(parameters, plan.config)
    generator = secret_generator()
    start, end = plan.span
    for step in range(steps):
        if should_stop():
            raise TrainingStopped(f"stopped after {step} steps")
        drawn = torch.rand(num_examples, generator=generator) < rate
        rows = drawn.nonzero().flatten()
        losses = learner.example_losses(batch_at(rows)) if len(rows) else []
        gradients = clipped_sum(losses, parameters, clip_norm)
        add_noise(gradients, noise_multiplier * clip_norm, generator)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient / (rate * num_examples)
        for group in optimizer.param_groups:
            group["lr"] = plan.config.rate_at(start + (end - start) * step / steps)
        optimizer.step()
    return TrainResult(math.nan, steps, time.perf_counter() - began)


def clipped_sum(
    losses: Sequence[Tensor], parameters: Sequence[nn.Parameter], clip_norm: float
) -> list[Tensor]:
    """Sum of the losses' gradients, each shortened to `clip_norm` over all parameters.

    Raises:
        DivergedError: A gradient is not finite; the text says nothing of the image.
    """
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for gradients in _gradients(losses, parameters):
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        if not math.isfinite(norm):
            raise DivergedError("a gradient is not finite; lower learning_rate")
        scale = min(1.0, clip_norm / norm) if norm > 0 else 1.0
        for target, gradient in zip(total, gradients, strict=True):
            target.add_(gradient, alpha=scale)
    return total


def add_noise(gradients: Sequence[Tensor], scale: float, generator: torch.Generator) -> None:
    """Add N(0, scale^2) to every coordinate, in place."""
    for gradient in gradients:
        noise = torch.randn(gradient.shape, generator=generator)
        gradient.add_(noise.to(gradient), alpha=scale)


def _gradients(
    losses: Sequence[Tensor], parameters: Sequence[nn.Parameter]
) -> Iterator[list[Tensor]]:
    for loss in losses:
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        yield [
            torch.zeros_like(parameter) if gradient is None else gradient
            for gradient, parameter in zip(found, parameters, strict=True)
        ]
