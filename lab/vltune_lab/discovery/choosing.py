"""Chooses K conditions that do not overlap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vltune_lab.discovery.backend import BackendError
from vltune_lab.discovery.candidates import Candidate
from vltune_lab.discovery.scoring import Score, overlap, score_candidate

# Two conditions that sort more than this share of the pairs alike are one under two names.
MOST_OVERLAP = 0.6


@dataclass(frozen=True)
class Ranked:
    """A candidate with its score, and why it was not chosen (empty if it was)."""

    candidate: Candidate
    score: Score
    reason: str

    def record(self) -> dict[str, Any]:
        """Return it as `made_by` holds it."""
        return {
            "name": self.candidate.name,
            "gloss": self.candidate.gloss,
            "score": round(self.score.total, 4),
            "coverage": round(self.score.coverage, 4),
            "discrimination": round(self.score.discrimination, 4),
            "generality": round(self.score.generality, 4),
            "answers": self.candidate.times,
            "also": list(self.candidate.also),
            "chosen": not self.reason,
            "reason": self.reason,
        }


def choose_conditions(
    candidates: Sequence[Candidate],
    classes_of: Mapping[int, Sequence[int]],
    num_classes: int,
    k: int,
) -> list[Ranked]:
    """Rank candidates and choose the best K that do not overlap.

    In falling order of score (ties: by name) each candidate is chosen unless its `overlap` with one
    that was chosen before is above `MOST_OVERLAP`, until there are K.

    Args:
        candidates: Distinct names.
        classes_of: The classes of each sentence, by sentence id.
        num_classes: C.
        k: K, at least 1.

    Returns:
        All candidates, best first; those without a reason are the K.

    Raises:
        BackendError: Fewer than K are left.
    """
    scored = [
        (candidate, score_candidate(candidate, classes_of, num_classes)) for candidate in candidates
    ]
    scored.sort(key=lambda pair: (-pair[1].total, pair[0].name))
    chosen: list[Candidate] = []
    ranked = []
    for candidate, score in scored:
        twin = next((c for c in chosen if overlap(c.values, candidate.values) > MOST_OVERLAP), None)
        if twin is not None:
            reason = f"overlaps {twin.name}"
        elif len(chosen) == k:
            reason = "score"
        else:
            reason = ""
            chosen.append(candidate)
        ranked.append(Ranked(candidate, score, reason))
    if len(chosen) < k:
        names = ", ".join(repr(candidate.name) for candidate in chosen) or "none"
        raise BackendError(
            f"{len(chosen)} distinct conditions are left of {len(candidates)} candidates "
            f"({names}), expected {k}. Lower --k, or take another --model or --seed."
        )
    return ranked
