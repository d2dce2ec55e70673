"""Prompts that are wrong in one thing: pictures of them tell whether a judge looks closely."""

from dataclasses import replace

import numpy as np

from vltune.geneval_prompts import COLORS, Excluded, GenevalPrompt, Included
from vltune_lab.scenes.geneval_prompts import COUNTS

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def near_miss(
    prompt: GenevalPrompt, classnames: tuple[str, ...], rng: np.random.Generator
) -> GenevalPrompt:
    """A prompt whose true pictures are wrong for `prompt`.

    Another class for one object; another number; another colour; the opposite side; or, of two
    coloured objects, each in the other's colour. The text is left as it is.

    Args:
        prompt: Of `vltune_lab.scenes.geneval_prompts`.
        classnames: To take another class from.
        rng: Of the choice.
    """
    first, *others = prompt.include
    if prompt.tag == "counting":
        count = _other(COUNTS, {first.count}, rng)
        return replace(
            prompt,
            include=(replace(first, count=count),),
            exclude=(Excluded(first.classname, count + 1),),
        )
    if prompt.tag == "colors":
        return replace(prompt, include=(replace(first, color=_other(COLORS, {first.color}, rng)),))
    if prompt.tag == "color_attr":
        (second,) = others
        swapped = replace(first, color=second.color), replace(second, color=first.color)
        return replace(prompt, include=swapped)
    if prompt.tag == "position":
        (placed,) = others
        assert placed.position is not None
        turned = OPPOSITE[placed.position[0]], placed.position[1]
        return replace(prompt, include=(first, replace(placed, position=turned)))
    known = {item.classname for item in prompt.include}
    return replace(prompt, include=(Included(_other(classnames, known, rng)), *others))


def _other(items, known, rng: np.random.Generator):
    choices = [item for item in items if item not in known]
    return choices[int(rng.integers(len(choices)))]
