r"""Rectified flow: carry noise to data along straight lines, and learn their velocity.

    x_t = (1 - t) noise + t x,   dx_t / dt = x - noise,   t in [0, 1].

Source: flow matching, arXiv 2210.02747, Eq. 20-23 with sigma_min = 0; BLIP3-o, arXiv 2505.09568,
Eq. 1-2, predicts this velocity for vision features. Deviation: none; there too t = 0 is noise.
Classifier-free guidance: arXiv 2207.12598, Eq. 6, on velocities.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""States (B, T, D) and times (B,) -> velocities (B, T, D)."""


class FlowDraw(NamedTuple):
    """One training example of each of B targets.

    Attributes:
        states: x_t, (B, T, D).
        times: t, (B,), in [0, 1).
        velocities: x - noise, (B, T, D).
    """

    states: Tensor
    times: Tensor
    velocities: Tensor


def draw_flow(targets: Tensor, generator: torch.Generator) -> FlowDraw:
    """Draw a time, uniform, and noise, standard normal, for each target (B, T, D).

    The generator may be of the CPU whatever the device of the targets: the numbers are drawn on its
    own device, so that a run on another device sees the same ones.
    """
    kind = generator.device
    times = torch.rand(len(targets), generator=generator, device=kind)
    noise = torch.randn(targets.shape, generator=generator, device=kind)
    return flow_at(targets, noise.to(targets), times.to(targets))


def flow_at(targets: Tensor, noise: Tensor, times: Tensor) -> FlowDraw:
    """The state at given times (B,) between given noise and targets, both (B, T, D)."""
    t = times[:, None, None]
    return FlowDraw((1 - t) * noise + t * targets, times, targets - noise)


def flow_loss(predicted: Tensor, velocities: Tensor) -> Tensor:
    """Mean squared error of the velocity of each example, (B, T, D) -> (B,)."""
    return (predicted - velocities).square().flatten(1).mean(dim=1)


def guided(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance, v_0 + guidance * (v_c - v_0); 1 is the conditional velocity."""
    return unconditional + guidance * (conditional - unconditional)


def euler_sample(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    """Follow the velocity from noise (B, T, D) at t = 0 to t = 1 in equal Euler steps.

    Exact for straight lines, that is where the velocity does not change along the way.

    Raises:
        ValueError: steps < 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}")
    states = noise
    for step in range(steps):
        times = states.new_full((len(states),), step / steps)
        states = states + velocity(states, times) / steps
    return states
