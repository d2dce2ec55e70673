"""From conditions as many answers give them to one candidate for each distinct name."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vltune.conditions import ConditionError, condition_cache_mapping
from vltune_lab.discovery.answers import RawCondition
from vltune_lab.discovery.similarity import Similarity, letter_similarity, normalise_name

# Names of at least this letter similarity are one condition: "scene type" and "type of scene" have
# 0.84 in a list of two, "lighting" and "light" 0.47, "pose" and "position" 0.22.
SAME_NAME = 0.7
# Texts of at least this cosine are one condition. A convention to start from: it differs between
# embedding models, so it is an option and every merge is recorded.
SAME_MEANING = 0.9
# The name enters every prompt, so it must be short.
MAX_NAME_WORDS = 4
MAX_NAME_LETTERS = 40


@dataclass(frozen=True)
class Candidate:
    """A distinct condition.

    Attributes:
        name: Normalised.
        gloss: One line for people.
        values: Value of the condition for each sentence that has one, by sentence id.
        also: Other names that were merged into it.
        times: How many answers gave it.
    """

    name: str
    gloss: str
    values: Mapping[int, str]
    also: tuple[str, ...] = ()
    times: int = 1


@dataclass(frozen=True)
class Meaning:
    """A second measure, on what names mean.

    Attributes:
        similarity: Cosines of N texts `name: gloss`, (N, N).
        threshold: Least cosine of names that are one condition.
    """

    similarity: Similarity
    threshold: float = SAME_MEANING


@dataclass(frozen=True)
class Merge:
    """A name that joined another; the cosine is None where there is no `Meaning`."""

    name: str
    into: str
    letters: float
    cosine: float | None

    def record(self) -> dict[str, Any]:
        """Return it as `made_by` holds it."""
        letters = round(self.letters, 4)
        cosine = None if self.cosine is None else round(self.cosine, 4)
        return {"name": self.name, "into": self.into, "letters": letters, "cosine": cosine}


@dataclass
class Candidates:
    """Distinct candidates, what was refused as {name: reason}, and which names were merged."""

    kept: list[Candidate] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    merges: list[Merge] = field(default_factory=list)


def merge_conditions(
    raw: Iterable[RawCondition],
    classnames: Sequence[str],
    similarity: Similarity = letter_similarity,
    same_name: float = SAME_NAME,
    meaning: Meaning | None = None,
) -> Candidates:
    """Normalise names, refuse those that are no conditions, and merge those that are the same.

    Equal names first: their sentences are united, the first value of a sentence stays. Then names
    in falling order of sentences (ties: as they came); each joins the first name before it that
    it is alike to, by `same_name` or by the threshold of `meaning`, else it stands for itself.

    Args:
        raw: Conditions of all answers.
        classnames: C names; a condition that names a class is not abstract and is refused.
        similarity: Measure on names, (N, N).
        same_name: Least similarity of names that are one condition.
        meaning: A measure on "name: gloss"; without it the names alone decide.

    Raises:
        BackendError: `meaning` asks a model that does not answer.
    """
    merged = Candidates()
    ordered = _distinct_names(raw, classnames, merged.refused)
    if not ordered:
        return merged
    letters = similarity([candidate.name for candidate in ordered])
    cosines: np.ndarray | None = None
    is_one = letters >= same_name
    if meaning is not None:
        cosines = meaning.similarity([f"{one.name}: {one.gloss}" for one in ordered])
        is_one = is_one | (cosines >= meaning.threshold)
    groups: dict[int, Candidate] = {}
    for index, leader in enumerate(_leaders(is_one)):
        if leader == index:
            groups[index] = ordered[index]
            continue
        groups[leader] = _unite(groups[leader], ordered[index])
        cosine = None if cosines is None else float(cosines[leader, index])
        names = ordered[index].name, ordered[leader].name
        merged.merges.append(Merge(*names, float(letters[leader, index]), cosine))
    merged.kept = list(groups.values())
    return merged


def _leaders(is_one: np.ndarray) -> list[int]:
    """Return for each of N the first leader before it that it is one with, (N, N), else itself."""
    leaders: list[int] = []
    for index in range(len(is_one)):
        before = (first for first in range(index) if leaders[first] == first)
        leaders.append(next((first for first in before if is_one[first, index]), index))
    return leaders


def _distinct_names(
    raw: Iterable[RawCondition], classnames: Sequence[str], refused: dict[str, str]
) -> list[Candidate]:
    """Return one candidate for each normalised name, those with most sentences first."""
    by_name: dict[str, Candidate] = {}
    classes = [tuple(normalise_name(name).split()) for name in classnames]
    for condition in raw:
        name = normalise_name(condition.name)
        reason = _reason_against(name, condition, classes)
        if reason:
            refused[condition.name[:100]] = reason
            continue
        one = Candidate(name, condition.gloss or name, condition.values)
        by_name[name] = _unite(by_name[name], one) if name in by_name else one
    return sorted(by_name.values(), key=lambda candidate: -len(candidate.values))


def _unite(one: Candidate, other: Candidate) -> Candidate:
    names = dict.fromkeys([*one.also, other.name, *other.also])
    names.pop(one.name, None)
    # The first gloss stands, unless it only repeats the name.
    gloss = other.gloss if one.gloss == one.name else one.gloss
    values = {**other.values, **one.values}
    return Candidate(one.name, gloss, values, tuple(names), one.times + other.times)


def _reason_against(name: str, condition: RawCondition, classes: Sequence[tuple[str, ...]]) -> str:
    words = tuple(name.split())
    if not words:
        return "no name is left"
    if len(words) > MAX_NAME_WORDS or len(name) > MAX_NAME_LETTERS:
        return f"more than {MAX_NAME_WORDS} words or {MAX_NAME_LETTERS} letters"
    for named in classes:
        if named and any(words[start : start + len(named)] == named for start in range(len(words))):
            return "names a class"
    try:
        made_by = {"method": "check", "date": "check"}
        condition_cache_mapping("check", ["check"], [(name, condition.gloss or name)], made_by)
    except ConditionError as error:
        return str(error).partition(": ")[2][:200]
    return ""
