"""Start the words for what an image shows where its image tokens already point.

Florence-2's encoder reads image tokens and word embeddings in one space, and the table of words is
also the decoder's output. After the grounding steps a linear reading of the image tokens knows
every class, colour and place; the words for them begin as the directions of that reading, so that
a question's word matches its image tokens, and a copied image token says its word, from the start.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vltune_lab.pretrain.grounding import GroundingHead
from vltune_lab.scenes.captions import plural
from vltune_lab.scenes.questions import COLOURS
from vltune_lab.scenes.world import load_priors

LENGTH = 0.5
"""Norm of an aligned word; an untrained one has 0.02 sqrt(192) = 0.28."""


def align_words(
    table: Tensor, tokenizer: Any, head: GroundingHead, classnames: Sequence[str]
) -> list[int]:
    """Write the directions of the head's readings into the word table, in place.

    Args:
        table: Word embeddings, (vocabulary, D).
        tokenizer: Gives a name's tokens; each takes the mean direction of what it names.
        head: Trained in the grounding steps.
        classnames: In the head's order.

    Returns:
        The ids that were written.
    """
    readings = [
        (head.covers.weight, [(name, plural(name)) for name in classnames]),
        (head.colours.weight, [(name,) for name in COLOURS]),
        (head.scenes.weight, [(name,) for name in sorted(load_priors().scenes)]),
    ]
    directions: dict[int, list[Tensor]] = {}
    with torch.no_grad():
        for weight, names in readings:
            centred = weight - weight.mean(dim=0)
            unit = centred / centred.norm(dim=1, keepdim=True).clamp(min=1e-12)
            for row, forms in zip(unit, names, strict=True):
                ids = {
                    token
                    for form in forms
                    for token in tokenizer(form, add_special_tokens=False)["input_ids"]
                }
                for token in sorted(ids):
                    directions.setdefault(token, []).append(row)
        for token, rows in directions.items():
            mean = torch.stack(rows).mean(dim=0)
            table[token] = LENGTH * mean / mean.norm().clamp(min=1e-12)
    return sorted(directions)
