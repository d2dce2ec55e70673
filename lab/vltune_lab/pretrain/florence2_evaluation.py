"""How well a vision-language model answers the world's questions, and what guessing would give."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vltune.backbones.vision_language import VisionLanguageBackbone
from vltune_lab.scenes.library import Library
from vltune_lab.scenes.plan import plan_scene, scene_rng
from vltune_lab.scenes.questions import (
    Question,
    ask,
    blind_baseline,
    exact_match,
    majority_baseline,
)
from vltune_lab.scenes.render import render_scene
from vltune_lab.scenes.world import Split, load_priors

QUESTIONS = 5
"""Questions an image."""
KNOWN = 3
"""Images that the blind baseline learns from, per image measured."""
LONGEST_ANSWER = 8
"""Tokens."""


@dataclass(frozen=True)
class QuestionFigures:
    """Exact match by kind and `overall`, each on the same questions.

    Attributes:
        exact_match: Of the model.
        other_image: Of the model when each question comes with another image of the set.
        majority: Of the kind's most frequent answer.
        blind: Of the question's words alone, learnt from other scenes of the same styles.
        num_images: Scenes.
        num_questions: Questions.
    """

    exact_match: dict[str, float]
    other_image: dict[str, float]
    majority: dict[str, float]
    blind: dict[str, float]
    num_images: int
    num_questions: int


def question_figures(
    backbone: VisionLanguageBackbone,
    library: Library,
    styles: tuple[str, ...],
    *,
    num_images: int,
    seed: int,
    drawings: Literal["all", "held_out"],
) -> QuestionFigures:
    """Measure on fresh scenes of `styles` with held-out backgrounds, all kinds alike."""
    test = measured_split(styles, drawings)
    images, groups = question_set(library, test, backbone.image_size[0], num_images, seed)
    known_split = Split(f"known/{'-'.join(styles)}", 0, styles, test.scenes, drawings="all")
    _, known = question_set(library, known_split, 32, KNOWN * num_images, seed)
    pixels = torch.stack([backbone.preprocess(Image.fromarray(image)) for image in images])
    tokens = torch.cat([backbone.encode_images(part) for part in pixels.split(64)])
    pairs = [pair for group in groups for pair in group]
    rows = torch.tensor([row for row, group in enumerate(groups) for _ in group])
    other = (rows + num_images // 2) % num_images
    return QuestionFigures(
        exact_match(pairs, answer_all(backbone, tokens, rows, pairs)),
        exact_match(pairs, answer_all(backbone, tokens, other, pairs)),
        majority_baseline(pairs),
        blind_baseline([pair for group in known for pair in group], pairs),
        num_images,
        len(pairs),
    )


def measured_split(styles: tuple[str, ...], drawings: Literal["all", "held_out"]) -> Split:
    """Unseen scenes of some styles: all scene types alike, panoramas of the test splits."""
    return Split(
        f"measure/{'-'.join(styles)}",
        0,
        styles,
        dict.fromkeys(load_priors().scenes, 1.0),
        drawings=drawings,
        is_held_out=True,
    )


def question_set(
    library: Library, split: Split, image_size: int, count: int, seed: int
) -> tuple[list[np.ndarray], list[list[Question]]]:
    """Images (H, W, 3), uint8, and the questions about each, of classes that a style can draw."""
    names = tuple(
        name
        for name in library.classnames
        if any((style, name) in library.sprites for style in split.styles)
    )
    images, groups = [], []
    for index in range(count):
        rng = scene_rng(seed, split.name, index)
        plan = plan_scene(library, split, rng, 0.0)
        scene = render_scene(library, plan, image_size, rng, is_held_out=split.is_held_out)
        images.append(scene.image)
        groups.append(ask(scene, names, rng, count=QUESTIONS))
    return images, groups


def answer_all(
    backbone: VisionLanguageBackbone,
    tokens: Tensor,
    rows: Tensor,
    pairs: Sequence[Question],
    batch_size: int = 128,
) -> list[str]:
    """Greedy answers to `pairs`, question i about the image whose tokens are `tokens[rows[i]]`."""
    answers: list[str] = []
    for begin in range(0, len(pairs), batch_size):
        part = pairs[begin : begin + batch_size]
        answers += backbone.answer(
            tokens[rows[begin : begin + batch_size]],
            [pair.question for pair in part],
            max_tokens=LONGEST_ANSWER,
        )
    return answers
