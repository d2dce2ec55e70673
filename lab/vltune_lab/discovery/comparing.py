"""Which conditions are one by their meaning, and what a cache says about it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vltune_lab.discovery.asking import Asker
from vltune_lab.discovery.backend import BackendError
from vltune_lab.discovery.candidates import SAME_NAME, Candidates, Meaning
from vltune_lab.discovery.choosing import Ranked, choose_conditions
from vltune_lab.discovery.embedding import batch_texts, cosine_similarity, embed_texts

TEXT = "name: gloss"

Counter = Callable[[str, int], Callable[[], None]]


def embedded_meaning(embedder: Asker, threshold: float, counter: Counter) -> Meaning:
    """Return the measure that an embedding model gives.

    Args:
        embedder: Embedding model and memory.
        threshold: Least cosine of names that are one condition.
        counter: Takes a stage and its number of requests, and returns what counts them.
    """

    def cosines(texts: Sequence[str]) -> np.ndarray:
        count = counter("compare", len(batch_texts(texts)))
        return cosine_similarity(embed_texts(texts, embedder, count))

    return Meaning(cosines, threshold)


def choose_merged(
    candidates: Candidates,
    classes_of: Mapping[int, Sequence[int]],
    num_classes: int,
    k: int,
    threshold: float,
) -> list[Ranked]:
    """Return `choose_conditions`; its error says if merging by meaning left too few.

    Raises:
        BackendError: Fewer than K are left.
    """
    try:
        return choose_conditions(candidates.kept, classes_of, num_classes, k)
    except BackendError as error:
        meant = [m for m in candidates.merges if m.cosine is not None and m.letters < SAME_NAME]
        if not meant:
            raise
        last = meant[-1]
        raise BackendError(
            f"{error} {len(meant)} names were merged by their meaning, such as {last.name!r} into "
            f"{last.into!r} at a cosine of {last.cosine:.4f}; a --same-meaning above {threshold} "
            "merges fewer."
        ) from error


def comparison_record(embedder: Asker, threshold: float, candidates: Candidates) -> dict[str, Any]:
    """Return as `made_by` holds it: the model, the threshold and every merge with its cosine."""
    return {
        **embedder.backend.parameters(),
        "model_answered_as": sorted(embedder.asked.models),
        "text": TEXT,
        "same_meaning": threshold,
        "merged": [merge.record() for merge in candidates.merges],
        "answers": embedder.record(),
    }
