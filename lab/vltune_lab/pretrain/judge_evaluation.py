"""How good a judge is: on true pictures of prompts, on near misses, and as a detector."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vltune.geneval import (
    Box,
    Detection,
    GenevalRules,
    GenevalScores,
    Judge,
    fault_of,
    summarise,
)
from vltune.geneval_prompts import TAGS, GenevalPrompt
from vltune.metrics import average_precision
from vltune_lab.pretrain.judge_stream import shuffle_tiles
from vltune_lab.scenes.geneval_prompts import make_prompts
from vltune_lab.scenes.geneval_scenes import PromptPainter
from vltune_lab.scenes.library import Library
from vltune_lab.scenes.near_misses import near_miss
from vltune_lab.scenes.plan import scene_rng
from vltune_lab.scenes.render import Scene, SceneObject

OVERLAP = 0.5
"""Intersection over union at which a detection is right."""
GRID = tuple(round(0.05 * step, 2) for step in range(2, 19))


@dataclass(frozen=True)
class TestPictures:
    """Pictures to measure a judge on.

    Attributes:
        prompts: N.
        images: One true picture of each, (N, 3, H, W), fp32 in [0, 1].
        objects: What is in them.
        misses: One picture of each prompt's near miss, (N, 3, H, W).
        shuffled: The true pictures with their tiles in another order, (N, 3, H, W).
    """

    prompts: tuple[GenevalPrompt, ...]
    images: Tensor
    objects: tuple[tuple[SceneObject, ...], ...]
    misses: Tensor
    shuffled: Tensor


@dataclass(frozen=True)
class JudgeFigures:
    """All figures, in [0, 1].

    Attributes:
        right: Share of true pictures called right: what a perfect generator would score.
        missed: Share of near misses called right: should be near 0.
        shuffled: Share of shuffled pictures called right: should be near 0.
        mAP: Mean average precision over classes at 0.5 IoU.
        F1: Of detections above the confidence, at 0.5 IoU with the right class.
        colour: Share of rightly detected objects whose colour is named rightly.
    """

    right: GenevalScores
    missed: GenevalScores
    shuffled: GenevalScores
    mAP: float
    F1: float
    colour: float


def draw_pictures(
    library: Library,
    classnames: tuple[str, ...],
    styles: tuple[str, ...],
    *,
    per_tag: int,
    seed: int,
    size: int = 64,
) -> TestPictures:
    """Draw true pictures and near misses; backgrounds are held out where a place has several.

    Args:
        library: Has the styles.
        classnames: Vocabulary; classes that no style draws are left out.
        styles: Drawing styles.
        per_tag: Prompts of each family; repeated where a family has fewer.
        seed: Of prompts and pictures.
        size: Side in pixels.
    """
    able = tuple(
        name for name in classnames if any((style, name) in library.sprites for style in styles)
    )
    painter = PromptPainter(library, size=size)
    prompts: list[GenevalPrompt] = []
    for tag in TAGS:
        made = make_prompts(able, per_tag=per_tag, seed=seed, tags=(tag,))
        drawable = [prompt for prompt in made if painter.styles_for(prompt, styles)]
        prompts += [drawable[index % len(drawable)] for index in range(per_tag)]
    scenes: list[Scene] = []
    misses: list[Scene] = []
    for index, prompt in enumerate(prompts):
        rng = scene_rng(seed, "judge test", index)
        scenes.append(painter.draw(prompt, rng, styles=styles, is_held_out=True))
        other = near_miss(prompt, able, rng)
        while not painter.styles_for(other, styles):
            other = near_miss(prompt, able, rng)
        misses.append(painter.draw(other, rng, styles=styles, is_held_out=True))
    return TestPictures(
        tuple(prompts),
        pixels_of(scenes),
        tuple(scene.objects for scene in scenes),
        pixels_of(misses),
        pixels_of(
            [
                replace(scene, image=shuffle_tiles(scene.image, scene_rng(seed, "shuffle", index)))
                for index, scene in enumerate(scenes)
            ]
        ),
    )


def pixels_of(scenes: Sequence[Scene]) -> Tensor:
    """Images of scenes of one size, (N, 3, H, W), fp32 in [0, 1]."""
    stacked = torch.from_numpy(np.stack([scene.image for scene in scenes]))
    return stacked.permute(0, 3, 1, 2).float() / 255


def judge_figures(judge: Judge, pictures: TestPictures) -> JudgeFigures:
    """Measure a judge with its own rules."""
    seen, seen_misses = _see(judge, pictures.images), _see(judge, pictures.misses)
    quality = detection_figures(seen, pictures.objects, judge.rules.confidence)
    return JudgeFigures(
        right=_scores(seen, pictures.prompts, judge.rules),
        missed=_scores(seen_misses, pictures.prompts, judge.rules),
        shuffled=_scores(_see(judge, pictures.shuffled), pictures.prompts, judge.rules),
        **quality,
    )


def choose_rules(judge: Judge, pictures: TestPictures) -> GenevalRules:
    """Thresholds with the largest difference between true pictures and near misses.

    The one for counting is chosen on the counting prompts, the other on all others; of those that
    are as good to a hundredth the highest, because generated pictures hold stranger things.
    """
    seen, seen_misses = _see(judge, pictures.images), _see(judge, pictures.misses)
    chosen = judge.rules
    for field in ("confidence", "counting_confidence"):
        rows = [
            index
            for index, prompt in enumerate(pictures.prompts)
            if (prompt.tag == "counting") == (field == "counting_confidence")
        ]
        gains = []
        for value in GRID:
            rules = replace(chosen, **{field: value})
            right, wrong = (
                sum(fault_of(found[row], pictures.prompts[row], rules) is None for row in rows)
                for found in (seen, seen_misses)
            )
            gains.append(right - wrong)
        least = max(gains) - len(rows) / 100
        good = [value for value, gain in zip(GRID, gains, strict=True) if gain >= least]
        chosen = replace(chosen, **{field: max(good)})
    return chosen


def detection_figures(
    seen: Sequence[Sequence[Detection]],
    objects: Sequence[Sequence[SceneObject]],
    confidence: float,
) -> dict[str, float]:
    """Compute mAP and F1 at 0.5 IoU, and the share of found objects whose colour is right.

    Args:
        seen: Detections of each picture.
        objects: What is there.
        confidence: Detections above it count for F1.
    """
    scores, hits = defaultdict(list), defaultdict(list)
    num_true: dict[str, int] = defaultdict(int)
    num_seen = num_right = num_coloured = 0
    for found, there in zip(seen, objects, strict=True):
        left = list(there)
        for item in there:
            num_true[item.classname] += 1
        for one in sorted(found, key=lambda item: -item.score):
            match = _match(one, left)
            if match is not None:
                left.remove(match)
            scores[one.classname].append(one.score)
            hits[one.classname].append(match is not None)
            if one.score > confidence:
                num_seen += 1
                num_right += match is not None
                num_coloured += match is not None and match.colour == one.color
    precisions = []
    for name, total in num_true.items():
        labels = np.array(hits[name], dtype=np.int8)
        found_share = labels.sum() / total if len(labels) else 0.0
        values = np.array(scores[name])
        # Objects that nothing detects have no score; they lower the recall that can be reached.
        precision = average_precision(values, labels) if labels.any() else 0.0
        precisions.append(precision * found_share)
    total_true = sum(num_true.values())
    return {
        "mAP": float(np.mean(precisions)),
        "F1": 2 * num_right / max(1, num_seen + total_true),
        "colour": num_coloured / max(1, num_right),
    }


def overlap_of(first: Box, second: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (sum(areas) - width * height)


def as_card(figures: JudgeFigures) -> dict[str, Any]:
    """Rounded, for a card."""
    return {
        "right": _rounded(figures.right),
        "near_miss": _rounded(figures.missed),
        "shuffled": _rounded(figures.shuffled),
        "mAP": round(figures.mAP, 4),
        "F1": round(figures.F1, 4),
        "colour": round(figures.colour, 4),
        "pictures": sum(figures.right.num_images.values()),
    }


def _rounded(scores: GenevalScores) -> dict[str, float]:
    return {tag: round(value, 4) for tag, value in scores.by_tag.items()} | {
        "overall": round(scores.overall, 4)
    }


def _match(one: Detection, left: Sequence[SceneObject]) -> SceneObject | None:
    best, found = OVERLAP, None
    for item in left:
        x, y, width, height = item.box
        overlap = overlap_of(one.box, (x, y, x + width, y + height))
        if item.classname == one.classname and overlap >= best:
            best, found = overlap, item
    return found


def _see(judge: Judge, images: Tensor) -> list[list[Detection]]:
    found: list[list[Detection]] = []
    for start in range(0, len(images), 64):
        part = images[start : start + 64]
        found += judge.detect(part, [judge.classnames] * len(part))
    return found


def _scores(
    seen: Sequence[Sequence[Detection]], prompts: Sequence[GenevalPrompt], rules: GenevalRules
) -> GenevalScores:
    verdicts = [
        fault_of(found, prompt, rules) is None for found, prompt in zip(seen, prompts, strict=True)
    ]
    return summarise([prompt.tag for prompt in prompts], verdicts)
