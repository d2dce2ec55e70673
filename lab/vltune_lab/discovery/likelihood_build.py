"""Finds the conditions of a class list offline: axes whose values the class names tell."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from vltune import __version__
from vltune.conditions import condition_cache_mapping
from vltune_lab.discovery.axes import AXES, CONTROLS, NEUTRAL, Axis
from vltune_lab.discovery.backend import BackendError
from vltune_lab.discovery.build import BuildOptions, Progress
from vltune_lab.discovery.from_paper import PAPER_CONDITIONS
from vltune_lab.discovery.likelihood import (
    AxisScore,
    axis_information,
    neutral_likelihood,
    pmi_profiles,
    rank_axes,
)
from vltune_lab.discovery.small_model import LikelihoodModel

METHOD = "language model, likelihood"


def build_by_likelihood(
    classnames: Sequence[str], options: BuildOptions, model: LikelihoodModel, progress: Progress
) -> dict[str, Any]:
    """Score the seed axes on a class list and return the content of a cache.

    The best K axes that score above every nonsense control are chosen. Where fewer than K do, the
    paper's conditions fill up, and `made_by.fallback` names them. Nothing is drawn at random.

    Args:
        classnames: C names, as `read_class_list` gives them.
        options: Name and K; its seed and budget have no use here.
        model: Language model.
        progress: Called with stage, done and total.

    Raises:
        BackendError: Axes and the paper's conditions together are fewer than K.
        ConditionError: The result is refused as a cache.
    """
    ranked = rank_axes(score_axes(classnames, model, progress))
    kept = [(entry.axis.name, entry.axis.gloss) for entry in ranked if not entry.reason]
    chosen = kept[: options.k]
    names = [name for name, _gloss in chosen]
    spare = [entry for entry in PAPER_CONDITIONS if entry[0] not in names]
    fallback = spare[: options.k - len(chosen)]
    if len(chosen) + len(fallback) < options.k:
        raise BackendError(
            f"{len(chosen)} axes score above every control, and the paper's conditions make "
            f"{len(chosen) + len(fallback)} in all; --k is {options.k}. Lower it."
        )
    made_by = {
        "method": METHOD,
        "date": datetime.now(UTC).date().isoformat(),
        "package": f"vltune {__version__}",
        **model.parameters(),
        "parameters": {"k": options.k},
        "prompts": {"neutral": NEUTRAL},
        "score": "mutual information of class and value under the softmax of PMI, / log(values)",
        "candidates": [_record(entry, names) for entry in ranked],
        "fallback": [name for name, _gloss in fallback],
        "fallback_source": "FedMPT, arXiv 2605.28347" if fallback else "",
    }
    return condition_cache_mapping(options.name, classnames, [*chosen, *fallback], made_by)


def score_axes(
    classnames: Sequence[str], model: LikelihoodModel, progress: Progress
) -> list[tuple[Axis, float]]:
    """Return every seed axis and control with its `axis_information` on C class names."""
    axes = AXES + CONTROLS
    count = _counter(sum(len(axis.values) for axis in axes), progress)
    neutral = neutral_likelihood(model, classnames)
    scored = []
    for axis in axes:
        profiles = pmi_profiles(model, axis, classnames, neutral, count)
        scored.append((axis, axis_information(profiles)))
    return scored


def _record(entry: AxisScore, chosen: Sequence[str]) -> dict[str, Any]:
    is_chosen = not entry.reason and entry.axis.name in chosen
    reason = entry.reason or ("" if is_chosen else "score")
    return {**entry.record(), "chosen": is_chosen, "reason": reason}


def _counter(total: int, progress: Progress) -> Callable[[], None]:
    done = 0
    progress("score axes", 0, total)

    def count() -> None:
        nonlocal done
        done += 1
        progress("score axes", done, total)

    return count
