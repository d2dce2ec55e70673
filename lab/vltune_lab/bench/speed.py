"""Benchmark `speed`: FedMPT's training step against the published dataflow, part by part.

Both ways run in one process and in turns; each row holds medians, ranges, their ratio and the
largest difference of results (and of gradients, where there are any).
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vltune.losses import asymmetric_loss
from vltune.optimal_transport import class_similarity, patch_marginal, sinkhorn_scaling
from vltune_lab.bench.published_dataflow import (
    Plans,
    materialised_similarity,
    plans_one_by_one,
    published_logits,
    whole_prompts,
)
from vltune_lab.bench.timing import Work, speed_row, time_pair
from vltune_lab.bench.workload import FULL, QUICK, SEED, Workload, make_workload


def run_speed(quick: bool = False) -> list[dict[str, Any]]:
    """Measure every part and the whole step.

    Args:
        quick: Small shapes, to see that it runs; the ratios mean little.

    Returns:
        Rows of a speed file.
    """
    parts: list[tuple[str, Callable[[Workload], tuple[Work, Work]]]] = [
        ("image features: tower in every step, or cache", image_features),
        ("text features: whole prompts, or shared prefix", text_features),
        ("adapters: materialised, or low-rank form", adapters),
        ("transport: POT one by one, or one batch", optimal_transport),
        ("whole step, forward and backward", whole_step),
    ]
    with tempfile.TemporaryDirectory() as work:
        workload = make_workload(QUICK if quick else FULL, Path(work))
        rows = []
        for name, part in parts:
            baseline, ours = part(workload)
            rows.append(
                speed_row(name, workload.setting, time_pair(baseline, ours, workload.repeats))
            )
        return rows


def image_features(workload: Workload) -> tuple[Work, Work]:
    """The frozen tower on a batch, against reading the cached features; fp16 on disk rounds."""
    indices = torch.arange(len(workload.images))
    return (
        lambda: tuple(workload.backbone.encode_images(workload.images)),
        lambda: workload.split.batch_at(indices)[:2],
    )


def text_features(workload: Workload) -> tuple[Work, Work]:
    """All K x C prompts, forward and backward, results and gradients."""
    model = workload.model
    prompts = model.prompts
    assert prompts is not None
    whole = whole_prompts(model, workload.backbone, workload.conditions, workload.classnames)
    direction = _direction(prompts())
    return (
        lambda: _with_gradients(whole(), direction, list(whole.parameters())),
        lambda: _with_gradients(prompts(), direction, list(prompts.parameters())),
    )


def adapters(workload: Workload) -> tuple[Work, Work]:
    """Similarities of all conditions, forward and backward, results and gradients."""
    module = workload.model.adapters
    assert module is not None
    with torch.no_grad():
        text = workload.model.text_features()
    patches = workload.split.batch_at(torch.arange(len(workload.images))).patch_features
    direction = _direction(module.cosine_similarity(patches, text))
    parameters = list(module.parameters())

    def plain() -> Sequence[Tensor]:
        return _with_gradients(
            materialised_similarity(module, patches, text), direction, parameters
        )

    def low_rank() -> Sequence[Tensor]:
        return _with_gradients(module.cosine_similarity(patches, text), direction, parameters)

    return plain, low_rank


def optimal_transport(workload: Workload) -> tuple[Work, Work]:
    """All plans of a batch to the same tolerance; what must agree is psi, in [0, 1]."""
    config = workload.model.config.transport
    scale = workload.model.logit_scale
    batch = workload.split.batch_at(torch.arange(len(workload.images)))
    with torch.no_grad():
        text = workload.model.text_features()
        similarity = torch.einsum("bmd,kcd->bkmc", batch.patch_features, text)
        score = class_similarity(similarity, scale, config.cost)
        a = patch_marginal(similarity, scale, config.tau)
    num_classes = score.shape[-1]
    problems = Plans(1 - score, a, torch.full_like(score[..., 0, :], 1 / num_classes))

    def psi(plan: Tensor) -> list[Tensor]:
        return [num_classes * (plan * score).sum(dim=-2)]

    def batched() -> Sequence[Tensor]:
        result = sinkhorn_scaling(
            *problems,
            epsilon=config.epsilon,
            max_iter=config.max_iter,
            tolerance=config.tolerance,
            check_every=config.check_every,
        )
        return psi(result.plan)

    return lambda: psi(plans_one_by_one(problems, config)), batched


def whole_step(workload: Workload) -> tuple[Work, Work]:
    """Loss and gradients of a batch from images (published) or from the cache (ours)."""
    model, loss = workload.model, workload.model.config.loss
    whole = whole_prompts(model, workload.backbone, workload.conditions, workload.classnames)
    indices = torch.arange(len(workload.images))
    rest = [value for name, value in model.named_parameters() if not name.startswith("prompts.")]
    assert model.prompts is not None
    own = list(model.prompts.parameters())

    def gradients(logits: Tensor, parameters: list[Tensor]) -> list[Tensor]:
        value = asymmetric_loss(
            logits,
            workload.split.labels[indices],
            gamma_neg=loss.gamma_neg,
            gamma_pos=loss.gamma_pos,
            clip=loss.clip,
        )
        return [logits, *torch.autograd.grad(value, parameters)]

    def published() -> Sequence[Tensor]:
        logits = published_logits(model, whole, workload.backbone, workload.images)
        return gradients(logits, [*whole.parameters(), *rest])

    def ours() -> Sequence[Tensor]:
        batch = workload.split.batch_at(indices)
        return gradients(model(batch.patch_features, batch.image_features).logits, [*own, *rest])

    return published, ours


def _direction(like: Tensor) -> Tensor:
    """A fixed random cotangent of norm 1."""
    direction = torch.randn(like.shape, generator=torch.Generator().manual_seed(SEED))
    return direction / direction.norm()


def _with_gradients(
    value: Tensor, direction: Tensor, parameters: Sequence[Tensor]
) -> Sequence[Tensor]:
    return [value, *torch.autograd.grad((value * direction).sum(), list(parameters))]
