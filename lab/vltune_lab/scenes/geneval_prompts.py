"""GenEval's six families of prompts over the world's classes, in two tiers of vocabulary.

What a prompt asks for is drawn by `vltune_lab.scenes.geneval_scenes`.
"""

import numpy as np

from vltune.geneval_prompts import (
    COLORS,
    RELATIONS,
    TAGS,
    Excluded,
    GenevalPrompt,
    Included,
)
from vltune_lab.scenes.captions import NUMBERS, article, plural

FIRST_CLASSES = (
    *("car", "bus", "airplane", "bird", "cat", "dog", "horse", "elephant"),
    *("umbrella", "banana", "donut", "suitcase"),
)
"""The first tier: every style draws them, and their outlines differ at 64 pixels."""
COLOURLESS = frozenset({"orange", "person"})
"""Asked for in no colour: an orange is a colour too, and GenEval colours no persons."""
COUNTS = (2, 3, 4)
TRIES = 200
"""Draws in a row that give nothing new before a family is taken to be exhausted."""


def draw_prompt(tag: str, classnames: tuple[str, ...], rng: np.random.Generator) -> GenevalPrompt:
    """Draw one prompt of a family; every one that the classes allow is alike.

    Args:
        tag: One of `vltune.geneval_prompts.TAGS`.
        classnames: Vocabulary, at least two that may be coloured.
        rng: Of the prompt.

    Raises:
        KeyError: No such family.
    """
    return _FAMILIES[tag](classnames, rng)


def make_prompts(
    classnames: tuple[str, ...], *, per_tag: int, seed: int, tags: tuple[str, ...] = TAGS
) -> list[GenevalPrompt]:
    """Different prompts, family by family; fewer where a family has no more.

    Args:
        classnames: Vocabulary.
        per_tag: Prompts wanted of each family.
        seed: Of the choice.
        tags: Families.
    """
    found: list[GenevalPrompt] = []
    for tag in tags:
        rng = np.random.Generator(np.random.PCG64([seed, TAGS.index(tag)]))
        chosen: dict[str, GenevalPrompt] = {}
        tries = 0
        while len(chosen) < per_tag and tries < TRIES:
            made = draw_prompt(tag, classnames, rng)
            tries = tries + 1 if made.prompt in chosen else 0
            chosen.setdefault(made.prompt, made)
        found += chosen.values()
    return found


def _single(classnames: tuple[str, ...], rng: np.random.Generator) -> GenevalPrompt:
    (name,) = _names(classnames, 1, rng)
    return GenevalPrompt("single_object", f"a photo of {article(name)}", (Included(name),))


def _two(classnames: tuple[str, ...], rng: np.random.Generator) -> GenevalPrompt:
    first, second = _names(classnames, 2, rng)
    return GenevalPrompt(
        "two_object",
        f"a photo of {article(first)} and {article(second)}",
        (Included(first), Included(second)),
    )


def _counting(classnames: tuple[str, ...], rng: np.random.Generator) -> GenevalPrompt:
    (name,) = _names(classnames, 1, rng)
    count = COUNTS[int(rng.integers(len(COUNTS)))]
    return GenevalPrompt(
        "counting",
        f"a photo of {NUMBERS[count]} {plural(name)}",
        (Included(name, count),),
        (Excluded(name, count + 1),),
    )


def _colors(classnames: tuple[str, ...], rng: np.random.Generator) -> GenevalPrompt:
    (name,), (color,) = _names(_colourable(classnames), 1, rng), _names(COLORS, 1, rng)
    return GenevalPrompt(
        "colors", f"a photo of {article(f'{color} {name}')}", (Included(name, color=color),)
    )


def _position(classnames: tuple[str, ...], rng: np.random.Generator) -> GenevalPrompt:
    placed, anchor = _names(classnames, 2, rng)
    (relation,) = _names(RELATIONS, 1, rng)
    return GenevalPrompt(
        "position",
        f"a photo of {article(placed)} {relation} {article(anchor)}",
        (Included(anchor), Included(placed, position=(relation, 0))),
    )


def _color_attr(classnames: tuple[str, ...], rng: np.random.Generator) -> GenevalPrompt:
    names, colors = _names(_colourable(classnames), 2, rng), _names(COLORS, 2, rng)
    said = [article(f"{color} {name}") for color, name in zip(colors, names, strict=True)]
    return GenevalPrompt(
        "color_attr",
        f"a photo of {said[0]} and {said[1]}",
        tuple(Included(name, color=color) for color, name in zip(colors, names, strict=True)),
    )


_FAMILIES = dict(
    zip(TAGS, (_single, _two, _counting, _colors, _position, _color_attr), strict=True)
)


def _names(items: tuple[str, ...], count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Different items in random order."""
    chosen = rng.permutation(len(items))[:count]
    return tuple(items[int(index)] for index in chosen)


def _colourable(classnames: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in classnames if name not in COLOURLESS)
