"""FedMPT's step as published code runs it: the yardstick of the benchmark `speed`.

The image tower runs in every step, every prompt runs whole at the text tower's context length, and
each condition's adapted patches are materialised. Transport, gate and loss are VLTune's own in the
whole step, so that its ratio says what the dataflow alone is worth.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vltune.adapters import ConditionAdapters
from vltune.algorithms.fedmpt import FedMPT
from vltune.backbones.clip import ClipBackbone
from vltune.gating import combine
from vltune.optimal_transport import TransportConfig, transport
from vltune.prompts import ConditionPrompts


class Plans(NamedTuple):
    """Inputs of B x K transport problems: cost (B, K, M, C), a (B, K, M), b (B, K, C)."""

    cost: Tensor
    a: Tensor
    b: Tensor


def whole_prompts(
    model: FedMPT, backbone: ClipBackbone, conditions: Sequence[str], classnames: Sequence[str]
) -> ConditionPrompts:
    """The model's prompts with the same values, each run whole at the full context length."""
    assert model.prompts is not None  # the benchmark's configuration has prompts
    config = model.config
    prompts = ConditionPrompts(
        backbone,
        conditions,
        classnames,
        condition_length=config.condition_length,
        class_length=config.class_length,
        generator=torch.Generator(),
        path="full",
    )
    prompts.load_state_dict(model.prompts.state_dict())
    return prompts


def materialised_similarity(
    adapters: ConditionAdapters, patch_features: Tensor, text_features: Tensor
) -> Tensor:
    """Cosines (B, K, M, C) through the adapted patches (B, K, M, D) themselves."""
    adapted = F.normalize(adapters(patch_features), dim=-1)
    return torch.einsum("bkmd,kcd->bkmc", adapted, text_features)


def plans_one_by_one(problems: Plans, config: TransportConfig) -> Tensor:
    """Plans (B, K, M, C) by POT, one problem after the other, to the same tolerance."""
    import ot

    cost, a, b = (tensor.double().numpy() for tensor in problems)
    num_images, num_conditions = cost.shape[:2]
    plans = [
        ot.sinkhorn(
            a[i, k],
            b[i, k],
            cost[i, k],
            config.epsilon,
            numItermax=config.max_iter,
            stopThr=config.tolerance,
            warn=False,
        )
        for i in range(num_images)
        for k in range(num_conditions)
    ]
    return torch.stack([torch.from_numpy(plan) for plan in plans]).reshape(cost.shape)


def published_logits(
    model: FedMPT, prompts: ConditionPrompts, backbone: ClipBackbone, images: Tensor
) -> Tensor:
    """Logits (B, C) of images (B, 3, H, W), everything computed in the step."""
    assert model.adapters is not None  # the benchmark's configuration has both
    assert model.gate is not None
    features = backbone.encode_images(images)
    similarity = materialised_similarity(model.adapters, features.patch_features, prompts())
    psi, _ = transport(similarity, model.logit_scale, model.config.transport)
    condition_logits = model.head_scale.exp() * psi + model.head_bias
    return combine(condition_logits, model.gate(features.image_features, None))
