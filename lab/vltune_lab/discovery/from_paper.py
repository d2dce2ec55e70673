"""The conditions that the FedMPT paper publishes, for any class list and without a model.

The paper (arXiv 2605.28347) finds its conditions with a language model; nothing of the kind runs
here, and the caches say so.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from vltune import __version__
from vltune.conditions import condition_cache_mapping
from vltune_lab.discovery.backend import BackendError

METHOD = "taken from the paper"
SOURCE = "FedMPT, arXiv 2605.28347"
NOTE = (
    "Only the names come from the paper; the glosses are ours and enter no prompt. No language "
    "model was asked about this class list."
)

PAPER_CONDITIONS = (
    ("colour", "The hues of the objects and of what surrounds them."),
    ("background", "What lies behind the objects: sky, wall, grass, water."),
    ("scene type", "The kind of place that is shown: street, kitchen, field, beach."),
    ("spatial layout", "Where objects stand to each other: apart, overlapping, near, far."),
    ("pose", "How an object is turned and what posture it takes."),
)
# The paper's seven are the five and these.
MORE_CONDITIONS = (
    ("lighting", "Where the light comes from and how strong it is."),
    ("object scale", "How large the objects are."),
)


def build_from_paper(name: str, classnames: Sequence[str], k: int) -> dict[str, Any]:
    """Return the content of a cache with the first K of the paper's conditions.

    Args:
        name: Of the class list.
        classnames: C names, as `read_class_list` gives them.
        k: K, 1 to 7.

    Raises:
        BackendError: The paper has fewer than K.
        ConditionError: A class name is refused.
    """
    published = (*PAPER_CONDITIONS, *MORE_CONDITIONS)
    if not 1 <= k <= len(published):
        raise BackendError(
            f"--k is {k}; the paper publishes {len(published)} conditions "
            f"({', '.join(word for word, _gloss in published)}). Give --k 1 to {len(published)}, "
            "or let a language model find more (--llm openai)."
        )
    size = "five" if k <= len(PAPER_CONDITIONS) else "seven"
    made_by = {
        "method": METHOD,
        "date": datetime.now(UTC).date().isoformat(),
        "package": f"vltune {__version__}",
        "source": f"{SOURCE}: the first {k} of the {size} conditions that its authors publish",
        "note": NOTE,
    }
    return condition_cache_mapping(name, classnames, published[:k], made_by)
