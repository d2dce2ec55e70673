"""Finds the conditions of a class list with a language model: describe, induce, choose."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from math import ceil
from typing import Any

from vltune import __version__
from vltune.conditions import MAX_CONDITIONS, condition_cache_mapping
from vltune_lab.discovery.answers import RawCondition, read_conditions, read_sentences
from vltune_lab.discovery.asking import Asker
from vltune_lab.discovery.backend import BackendError
from vltune_lab.discovery.candidates import SAME_MEANING, Candidates, merge_conditions
from vltune_lab.discovery.choosing import Ranked
from vltune_lab.discovery.comparing import (
    choose_merged,
    comparison_record,
    embedded_meaning,
)
from vltune_lab.discovery.prompts import (
    DESCRIBE_SYSTEM,
    INDUCE_SYSTEM,
    PROMPT_VERSION,
    describe_question,
    induce_question,
)
from vltune_lab.discovery.sampling import SIZES, class_counts, sample_combinations

METHOD = "language model"
DESCRIBE_BATCH = 10
INDUCE_BATCH = 50
# How often each class should appear; sentences of one class are compared, so 2 is the least.
APPEARANCES = 4
FEWEST_APPEARANCES = 2
# A short class list is asked about more often, or a few sentences would decide.
FEWEST_SENTENCES = 60
DESCRIBE_TEMPERATURE = 0.7
INDUCE_TEMPERATURE = 0.2
# The model is asked for more than K, as some overlap.
SPARE_CONDITIONS = 3

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class BuildOptions:
    """What to build.

    Attributes:
        name: Of the class list.
        k: K, how many conditions.
        seed: Of the sampling, and of the model where it has one.
        max_requests: The budget that the plan must fit in; a quarter is left for repeats and
            embeddings.
        same_meaning: Least cosine of embedded names that are one condition.
    """

    name: str
    k: int = 5
    seed: int = 1
    max_requests: int = 300
    same_meaning: float = SAME_MEANING

    def __post_init__(self) -> None:
        if not 0 < self.same_meaning <= 1:
            raise BackendError(
                f"--same-meaning is {self.same_meaning}; expected a cosine above 0, at most 1."
            )
        if not 1 <= self.k <= MAX_CONDITIONS:
            raise BackendError(f"--k is {self.k}; expected 1 to {MAX_CONDITIONS}.")


def plan_combinations(num_classes: int, max_requests: int) -> int:
    """How many combinations of classes to ask about within a budget of requests.

    A combination has 2.5 classes on average, so M of them give a class 2.5 M / C appearances, and
    cost ceil(M / 10) requests to describe and ceil(M / 50) to induce. M is what gives each class
    four appearances and 60 sentences in all, or fewer if three quarters of the budget allow fewer.

    Raises:
        BackendError: The budget does not allow two appearances of each class.
    """
    average = sum(SIZES) / len(SIZES)
    least = ceil(FEWEST_APPEARANCES * num_classes / average)
    wanted = max(ceil(APPEARANCES * num_classes / average), FEWEST_SENTENCES)
    allowed = max_requests * 3 // 4
    affordable = wanted
    while affordable >= least and _requests(affordable) > allowed:
        affordable -= DESCRIBE_BATCH
    if affordable < least:
        needed = ceil(_requests(least) * 4 / 3)
        raise BackendError(
            f"--max-requests is {max_requests}; {num_classes} classes need {needed} or more."
        )
    return affordable


def build_conditions(
    classnames: Sequence[str],
    options: BuildOptions,
    asker: Asker,
    progress: Progress,
    embedder: Asker | None = None,
) -> dict[str, Any]:
    """Ask the language model about a class list and return the content of a cache.

    Args:
        classnames: C names, as `read_class_list` gives them.
        options: What to build.
        asker: Language model and memory.
        progress: Called with stage, done and total.
        embedder: Embedding model and memory; None compares names by their letters alone.

    Raises:
        BackendError: No usable answers, the budget is spent, or fewer than K distinct conditions.
        ConditionError: The result is refused as a cache.
    """
    number = plan_combinations(len(classnames), options.max_requests)
    combinations = sample_combinations(len(classnames), number, options.seed)
    sentences = _describe(classnames, combinations, options, asker, progress)
    raw = _induce(sentences, options, asker, progress)
    counter = partial(_counter, progress=progress)
    meaning = embedded_meaning(embedder, options.same_meaning, counter) if embedder else None
    candidates = merge_conditions(raw, classnames, meaning=meaning)
    classes_of = {number: combinations[number] for number in sentences}
    ranked = choose_merged(candidates, classes_of, len(classnames), options.k, options.same_meaning)
    chosen = [(r.candidate.name, r.candidate.gloss) for r in ranked if not r.reason]
    counts = class_counts(list(classes_of.values()), len(classnames))
    made_by = {
        **_origin(options, asker),
        "sampling": {
            "combinations": len(combinations),
            "sentences": len(sentences),
            "fewest_a_class": min(counts),
            "most_a_class": max(counts),
        },
        **_found(ranked, candidates),
    }
    if embedder:
        made_by["embedding"] = comparison_record(embedder, options.same_meaning, candidates)
    return condition_cache_mapping(options.name, classnames, chosen, made_by)


def _requests(combinations: int) -> int:
    return ceil(combinations / DESCRIBE_BATCH) + ceil(combinations / INDUCE_BATCH)


def _describe(
    classnames: Sequence[str],
    combinations: Sequence[tuple[int, ...]],
    options: BuildOptions,
    asker: Asker,
    progress: Progress,
) -> dict[int, str]:
    """Stage one: a sentence for each combination, by its number."""
    numbers = range(len(combinations))
    # Not even batches: a larger budget then only adds to them, and goes on from kept answers.
    batches = [list(numbers[start : start + DESCRIBE_BATCH]) for start in numbers[::DESCRIBE_BATCH]]
    questions = [
        describe_question(
            [(number, [classnames[index] for index in combinations[number]]) for number in batch],
            DESCRIBE_TEMPERATURE,
            options.seed,
        )
        for batch in batches
    ]
    readers = [partial(read_sentences, asked=batch) for batch in batches]
    parts = asker.ask_all(questions, readers, _counter("describe", len(batches), progress))
    return {number: text for part in parts for number, text in sorted(part.items())}


def _induce(
    sentences: dict[int, str], options: BuildOptions, asker: Asker, progress: Progress
) -> list[RawCondition]:
    """Stage two: conditions behind the sentences, batch by batch."""
    batches = _even_batches(list(sentences), INDUCE_BATCH)
    questions = [
        induce_question(
            [(number, sentences[number]) for number in batch],
            options.k + SPARE_CONDITIONS,
            INDUCE_TEMPERATURE,
            options.seed,
        )
        for batch in batches
    ]
    readers = [partial(read_conditions, asked=batch) for batch in batches]
    parts = asker.ask_all(questions, readers, _counter("induce", len(batches), progress))
    return [condition for part in parts for condition in part]


def _origin(options: BuildOptions, asker: Asker) -> dict[str, Any]:
    asked = asker.asked
    return {
        "method": METHOD,
        "date": datetime.now(UTC).date().isoformat(),
        "package": f"vltune {__version__}",
        **asker.backend.parameters(),
        "model_answered_as": sorted(asked.models),
        "parameters": {
            "k": options.k,
            "seed": options.seed,
            "describe_temperature": DESCRIBE_TEMPERATURE,
            "induce_temperature": INDUCE_TEMPERATURE,
            "describe_batch": DESCRIBE_BATCH,
            "induce_batch": INDUCE_BATCH,
            "asked_as": sorted(asked.forms),
        },
        "prompts": {
            "version": PROMPT_VERSION,
            "describe": DESCRIBE_SYSTEM,
            "induce": INDUCE_SYSTEM.format(wanted=options.k + SPARE_CONDITIONS),
        },
        "answers": asker.record(),
    }


def _found(ranked: Sequence[Ranked], candidates: Candidates) -> dict[str, Any]:
    return {
        "candidates": [entry.record() for entry in ranked],
        "refused": [
            {"name": name, "reason": reason} for name, reason in sorted(candidates.refused.items())
        ],
    }


def _even_batches(numbers: Sequence[int], size: int) -> list[list[int]]:
    """Cut into batches of at most `size` that differ by at most one."""
    count = ceil(len(numbers) / size)
    cuts = [len(numbers) * part // count for part in range(count + 1)]
    return [list(numbers[start:end]) for start, end in pairwise(cuts)]


def _counter(stage: str, total: int, progress: Progress) -> Callable[[], None]:
    done = 0
    progress(stage, 0, total)

    def count() -> None:
        nonlocal done
        done += 1
        progress(stage, done, total)

    return count
