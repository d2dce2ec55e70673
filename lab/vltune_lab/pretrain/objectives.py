"""What clip-compact learns from: captions, grounded phrases and image-level labels.

Five terms over one batch. Captions alone do not teach a small tower anything in an hour; patches
that are never told that they are background answer to every class. The terms:

1. contrastive: pooled image features against captions, symmetric InfoNCE (CLIP);
2. grounded phrases: each patch that shows an object against the phrases of all classes, softmax;
3. presence: patch and class phrase through a sigmoid, which tells background patches that they are
   nothing, and its soft-pooled form over the image against the image's labels;
4. colours: the mean patch of an object against "a red car"-like phrases of its batch, softmax;
5. spread: squared cosines between the classes' phrases, which keeps their directions apart.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vltune_lab.scenes.captions import article

TEMPLATES = (
    "{a}",
    "{c}",
    "{c}.",
    "a photo of {a}",
    "a photo of {a}.",
    "a picture of {a}.",
    "a drawing of {a}",
    "there is {a}",
    "a scene with {a}",
    "a photo of the {c}",
    "one {c} in a picture",
    "the colour of {a}",
    "a photo of a colour a photo of a {c}.",
    "the background of {a}",
    "a photo of a background a photo of a {c}.",
    "scene type {c}",
    "a photo of a scene type a photo of a {c}.",
    "spatial layout {c}",
    "a photo of a spatial layout a photo of a {c}.",
    "the pose of {a}",
    "a photo of a pose a photo of a {c}.",
    "the lighting of {a}",
    "object scale a photo of {a}",
    "a photo of a lighting {c}.",
    "texture and material of {a}",
    "a big {c}",
    "a small {c}",
    "{a} on the left",
    "{a} at the top right",
    "many {c}",
)
"""Phrases of a class; the words of usual conditions stand before it, so that a prompt which names a
condition first still means its class."""


@dataclass(frozen=True)
class Objective:
    """Weights of the terms."""

    contrastive: float = 0.5
    grounded: float = 1.0
    presence: float = 1.0
    colours: float = 0.25
    spread: float = 0.5


class Head(nn.Module):
    """Learnt scales and bias of the sigmoid terms; used in pre-training only."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0).log())
        self.bias = nn.Parameter(torch.tensor(-6.0))
        self.pool_scale = nn.Parameter(torch.tensor(10.0).log())
        self.pool_bias = nn.Parameter(torch.tensor(-4.0))


def class_phrases(classnames: tuple[str, ...], rng: np.random.Generator) -> list[str]:
    """One phrase of each class, each from its own random template."""
    chosen = rng.integers(len(TEMPLATES), size=len(classnames))
    return [
        TEMPLATES[index].format(a=article(name), c=name)
        for index, name in zip(chosen, classnames, strict=True)
    ]


def contrastive_loss(
    image_features: Tensor, caption_features: Tensor, logit_scale: Tensor
) -> Tensor:
    """Symmetric InfoNCE; both (B, D), unit norm."""
    logits = logit_scale * image_features @ caption_features.T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def grounded_loss(similarity: Tensor, patch_labels: Tensor, scale: Tensor) -> Tensor:
    """Softmax over class phrases at patches that show an object.

    Args:
        similarity: Cosine of patches and class phrases, (B, M, C).
        patch_labels: (B, M), -1 where the patch shows no object.
        scale: Logit scale, scalar.
    """
    if not (patch_labels >= 0).any():  # cross entropy's mean over nothing is NaN
        return similarity.sum() * 0
    return F.cross_entropy(
        scale * similarity.flatten(0, 1), patch_labels.flatten(), ignore_index=-1
    )


def presence_loss(similarity: Tensor, patch_labels: Tensor, labels: Tensor, head: Head) -> Tensor:
    """Sigmoid at every patch plus sigmoid of the soft-pooled image score.

    Args:
        similarity: (B, M, C).
        patch_labels: (B, M), -1 for nothing.
        labels: Image labels, (B, C), bool.
        head: Scales and biases.
    """
    target = F.one_hot(patch_labels.clamp(min=0), similarity.shape[2]).to(similarity.dtype)
    target = target * (patch_labels >= 0).unsqueeze(-1)
    patch_logits = head.scale.exp() * similarity + head.bias
    per_patch = (
        F.binary_cross_entropy_with_logits(patch_logits, target, reduction="none").sum(-1).mean()
    )
    scale = head.pool_scale.exp()
    weights = (scale * similarity).softmax(dim=1)
    pooled = (weights * similarity).sum(dim=1)
    image_logits = 2 * scale * pooled + head.pool_bias
    per_image = F.binary_cross_entropy_with_logits(
        image_logits, labels.to(pooled.dtype), reduction="none"
    )
    return per_patch + per_image.sum(-1).mean() / 4


def spread_loss(phrases: Tensor) -> Tensor:
    """Sum of squared cosines of a phrase with the other classes' phrases, mean over classes.

    Args:
        phrases: (C, D), unit norm. Zero when orthogonal; C - 1 when all are equal.
    """
    cosines = phrases @ phrases.T
    return (cosines.square().sum() - cosines.diagonal().square().sum()) / len(phrases)


def colour_loss(
    patch_features: Tensor,
    patch_labels: Tensor,
    colours: list[tuple[int, int, str]],
    phrases: Tensor,
    scale: Tensor,
) -> Tensor:
    """Mean patch of each object against the distinct colour phrases of the batch.

    Args:
        patch_features: (B, M, D), unit norm.
        patch_labels: (B, M).
        colours: (image, class index, phrase index as str) per object.
        phrases: Features of the distinct phrases, (P, D), unit norm.
        scale: Logit scale, scalar.
    """
    regions, targets = [], []
    for image, class_index, phrase in colours:
        mask = patch_labels[image] == class_index
        if mask.any():
            regions.append(patch_features[image][mask].mean(dim=0))
            targets.append(int(phrase))
    if not regions:
        return patch_features.sum() * 0
    region_features = F.normalize(torch.stack(regions), dim=-1)
    return F.cross_entropy(
        scale * region_features @ phrases.T, torch.tensor(targets, device=phrases.device)
    )
