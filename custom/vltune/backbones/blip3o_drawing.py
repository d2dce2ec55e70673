"""How a BLIP3-o draws: the flow's loss, and features from noise under guidance."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vltune.backbones.blip3o_model import Blip3oModel
from vltune.backbones.flow_matching import draw_flow, euler_sample, flow_loss, guided

EMPTY_PROMPT = ""
"""What is shown instead of a prompt that is left out, and what guidance leads away from."""


def drop_prompts(prompts: Sequence[str], share: float, generator: torch.Generator) -> list[str]:
    """Leave out each prompt with probability `share`."""
    drawn = torch.rand(len(prompts), generator=generator, device=generator.device)
    is_dropped = (drawn < share).tolist()
    return [EMPTY_PROMPT if drop else text for text, drop in zip(prompts, is_dropped, strict=True)]


def velocity_loss(
    model: Blip3oModel, targets: Tensor, condition: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean squared error of the velocity at a random time, (B,). Source: arXiv 2505.09568, Eq. 2.

    Args:
        model: Holds the flow transformer.
        targets: Standardised features, (B, M, D).
        condition: Query states, (B, Q, W).
        generator: Of times, then noise.
    """
    draw = draw_flow(targets, generator)
    predicted = model.flow_transformer(draw.states, draw.times, condition)
    return flow_loss(predicted, draw.velocities)


@torch.no_grad()
def sample_features(
    model: Blip3oModel, condition: Tensor, empty: Tensor, noise: Tensor, guidance: float
) -> Tensor:
    """Follow the guided velocity from noise (B, M, D) to standardised features.

    Args:
        model: Holds the flow transformer and the number of steps.
        condition: Query states of the prompts, (B, Q, W).
        empty: Of the empty prompt, (1, Q, W).
        noise: Start.
        guidance: Scale of classifier-free guidance.
    """
    both = torch.cat([condition, empty.expand_as(condition)])

    def velocity(states: Tensor, times: Tensor) -> Tensor:
        predicted = model.flow_transformer(states.repeat(2, 1, 1), times.repeat(2), both)
        conditional, unconditional = predicted.chunk(2)
        return guided(conditional, unconditional, guidance)

    return euler_sample(velocity, noise, model.settings.generation.steps)
