"""Does a picture show what its prompt asks for: GenEval's rules on a judge's detections.

A *judge* looks at pictures and says what it sees; this module compares that with the prompt. The
rules are those of Ghosh et al. 2023, section 3, as its released evaluation applies them:

* A class is present as often as it has detections above a confidence; for counting a higher one.
* An `include` entry takes its class's `count` most confident detections. All of them must have its
  colour, and must lie in its relation to all of those of the entry that it refers to.
* An `exclude` entry fails the picture when its class has that many detections.

A picture is right or wrong. A family's score is its share of right pictures, the overall score is
the mean of the families' scores.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from vltune.geneval_prompts import MOST_OBJECTS, TAGS, GenevalPrompt, Included

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""

_CLOSE = 1e-3
_DIRECTION = 0.5


@dataclass(frozen=True)
class Detection:
    """One thing that a judge sees.

    Attributes:
        classname: Of the judge's classes.
        score: Confidence in [0, 1].
        box: Where.
        color: One of `vltune.geneval_prompts.COLORS` or another name; None: not said.
    """

    classname: str
    score: float
    box: Box
    color: str | None = None


@dataclass(frozen=True)
class GenevalRules:
    """Thresholds; a judge brings its own.

    Attributes:
        confidence: A detection counts above it. Ghosh et al. 2023: 0.3, of Mask2Former.
        counting_confidence: The same for prompts that count. Ghosh et al. 2023: 0.9.
        overlap: Share of both objects' extents by which their middles must be further apart than
            not at all before one is beside the other. Ghosh et al. 2023: 0.1.
    """

    confidence: float = 0.3
    counting_confidence: float = 0.9
    overlap: float = 0.1

    def __post_init__(self) -> None:
        for name in ("confidence", "counting_confidence", "overlap"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; expected 0 to 1")


@runtime_checkable
class Judge(Protocol):
    """Looks at pictures; knows nothing of prompts."""

    @property
    def classnames(self) -> frozenset[str]:
        """Classes that it can tell."""

    @property
    def rules(self) -> GenevalRules:
        """Thresholds that fit its scores."""

    def detect(self, images: Tensor, wanted: Sequence[frozenset[str]]) -> list[list[Detection]]:
        """See what is there.

        Args:
            images: (B, 3, H, W), fp32 in [0, 1].
            wanted: Classes to report for each image; others need not be.
        """


@dataclass(frozen=True)
class GenevalScores:
    """Scores of one set of pictures, in [0, 1].

    Attributes:
        overall: Mean of `by_tag`.
        by_tag: Family -> share of right pictures, in the order of `TAGS`.
        num_images: Family -> pictures.
    """

    overall: float
    by_tag: dict[str, float]
    num_images: dict[str, int]


def score_images(
    judge: Judge, images: Tensor, prompts: Sequence[GenevalPrompt], *, batch_size: int = 64
) -> GenevalScores:
    """Judge one picture for each prompt; several pictures of a prompt: give it several times.

    Args:
        judge: Must know every class of the prompts.
        images: (N, 3, H, W), fp32 in [0, 1].
        prompts: N, in the same order.
        batch_size: Pictures that the judge sees at a time.

    Raises:
        ValueError: The counts differ, there is nothing, or the judge does not know a class.
    """
    check_judge(judge, prompts)
    if len(images) != len(prompts):
        raise ValueError(f"got {len(images)} images for {len(prompts)} prompts")
    verdicts = []
    for start in range(0, len(prompts), batch_size):
        part = prompts[start : start + batch_size]
        seen = judge.detect(
            images[start : start + batch_size], [prompt.classnames for prompt in part]
        )
        verdicts += [
            fault_of(found, prompt, judge.rules) is None
            for found, prompt in zip(seen, part, strict=True)
        ]
    return summarise([prompt.tag for prompt in prompts], verdicts)


def check_judge(judge: Judge, prompts: Sequence[GenevalPrompt]) -> None:
    """Refuse prompts that the judge could only call wrong.

    Raises:
        ValueError: No prompt, or classes that the judge does not know.
    """
    if not prompts:
        raise ValueError("there is no prompt to score. Give a file with prompts.")
    asked = frozenset().union(*(prompt.classnames for prompt in prompts))
    unknown = sorted(asked - judge.classnames)
    if unknown:
        raise ValueError(
            f"the judge does not know {', '.join(map(repr, unknown[:8]))} ({len(unknown)} of the "
            f"prompts' {len(asked)} classes). Leave those prompts out, or take another judge."
        )


def summarise(tags: Sequence[str], verdicts: Sequence[bool]) -> GenevalScores:
    """Put single verdicts together.

    Args:
        tags: Family of each picture, at least one.
        verdicts: Whether it is right, in the same order.
    """
    groups: dict[str, list[bool]] = defaultdict(list)
    for tag, is_right in zip(tags, verdicts, strict=True):
        groups[tag].append(is_right)
    by_tag = {tag: sum(groups[tag]) / len(groups[tag]) for tag in TAGS if tag in groups}
    return GenevalScores(
        overall=sum(by_tag.values()) / len(by_tag),
        by_tag=by_tag,
        num_images={tag: len(groups[tag]) for tag in by_tag},
    )


def fault_of(
    detections: Sequence[Detection], prompt: GenevalPrompt, rules: GenevalRules
) -> str | None:
    """What is wrong with a picture, None where it is right.

    Args:
        detections: Of one picture, in any order, with any scores.
        prompt: What it should show.
        rules: Thresholds.
    """
    least = rules.counting_confidence if prompt.tag == "counting" else rules.confidence
    seen: dict[str, list[Detection]] = defaultdict(list)
    for item in sorted(detections, key=lambda item: -item.score):
        if item.score > least and len(seen[item.classname]) < MOST_OBJECTS:
            seen[item.classname].append(item)
    groups: list[list[Detection] | None] = []
    faults: list[str] = []
    for entry in prompt.include:
        group = seen[entry.classname][: entry.count]
        fault = _fault_of_entry(group, entry, groups, rules)
        groups.append(group if fault is None else None)
        if fault is not None:
            faults.append(fault)
    for refused in prompt.exclude:
        if len(seen[refused.classname]) >= refused.count:
            faults.append(f"{len(seen[refused.classname])} x {refused.classname}")
    return "; ".join(faults) or None


def relations(own: Box, other: Box, *, overlap: float = 0.1) -> frozenset[str]:
    """Where `own` lies, seen from `other`; nothing where the boxes lie too much over each other.

    d = middle(own) - middle(other) is shortened in each axis by overlap * (sum of both extents) and
    divided by its former length; beyond 0.5 in an axis it is a relation. Source: Ghosh et al. 2023,
    released evaluation.
    """
    middle = [(own[axis] + own[axis + 2] - other[axis] - other[axis + 2]) / 2 for axis in (0, 1)]
    extents = [own[axis + 2] - own[axis] + other[axis + 2] - other[axis] for axis in (0, 1)]
    length = math.hypot(*middle)
    across, down = (
        math.copysign(max(abs(offset) - overlap * extent, 0.0), offset)
        for offset, extent in zip(middle, extents, strict=True)
    )
    if max(abs(across), abs(down)) < _CLOSE:
        return frozenset()
    across, down = across / length, down / length
    found = {
        "left of": across < -_DIRECTION,
        "right of": across > _DIRECTION,
        "above": down < -_DIRECTION,
        "below": down > _DIRECTION,
    }
    return frozenset(name for name, is_so in found.items() if is_so)


def _fault_of_entry(
    group: list[Detection],
    entry: Included,
    earlier: list[list[Detection] | None],
    rules: GenevalRules,
) -> str | None:
    if len(group) < entry.count:
        return f"{len(group)} of {entry.count} x {entry.classname}"
    if entry.color is not None and any(item.color != entry.color for item in group):
        return f"{entry.classname} not {entry.color}"
    if entry.position is None:
        return None
    relation, index = entry.position
    target = earlier[index]
    if target is None:
        return f"nothing for {entry.classname} to be {relation}"
    for item in group:
        for other in target:
            if relation not in relations(item.box, other.box, overlap=rules.overlap):
                return f"{entry.classname} not {relation} {other.classname}"
    return None
