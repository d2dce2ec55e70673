"""How good a candidate is as a condition of a class list, from the sentences it groups."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vltune_lab.discovery.candidates import Candidate


@dataclass(frozen=True)
class Score:
    """Parts and whole, each in [0, 1].

    Attributes:
        coverage: Share of the sentences that have a value of the condition.
        discrimination: How far the value depends on the class, beyond chance.
        generality: Share of the classes that appear in a sentence with a value.
    """

    coverage: float
    discrimination: float
    generality: float

    @property
    def total(self) -> float:
        """(coverage + discrimination + generality) / 3: no part is known to matter more."""
        return (self.coverage + self.discrimination + self.generality) / 3


def score_candidate(
    candidate: Candidate, classes_of: Mapping[int, Sequence[int]], num_classes: int
) -> Score:
    """Score one candidate.

    With S all sentences, S_c those that have a value of condition c, and C classes:

        coverage   = |S_c| / |S|
        generality = |classes that appear in S_c| / C

    `discrimination` is documented at its function.

    Args:
        candidate: With its values by sentence id.
        classes_of: The classes of each sentence, by sentence id; all sentences there are.
        num_classes: C.
    """
    covered = [number for number in candidate.values if number in classes_of]
    seen = {index for number in covered for index in classes_of[number]}
    pairs = [
        (index, candidate.values[number]) for number in covered for index in classes_of[number]
    ]
    return Score(
        coverage=len(covered) / len(classes_of) if classes_of else 0.0,
        discrimination=discrimination(pairs),
        generality=len(seen) / num_classes,
    )


def discrimination(pairs: Sequence[tuple[int, str]]) -> float:
    r"""How far two sentences of one class agree in the value, beyond any two: Fleiss' kappa.

    With n(x, v) the number of pairs (class x, value v), n(x) and n(v) its sums, n their number:

        within = sum_xv n(x, v) (n(x, v) - 1) / sum_x n(x) (n(x) - 1)
        any    = sum_v n(v) (n(v) - 1) / (n (n - 1))
        d      = max(0, (within - any) / (1 - any))

    1 if every class has one value and there are several; about 0 where values do not depend on the
    classes, however few sentences a class has (mutual information would be near 1 there); 0 if all
    have one value or no class has two sentences.

    Args:
        pairs: (class, value), one for each sentence and each of its classes.
    """
    n = len(pairs)
    cells = _ordered_pairs(Counter(pairs).values())
    per_class = _ordered_pairs(Counter(index for index, _value in pairs).values())
    per_value = _ordered_pairs(Counter(value for _index, value in pairs).values())
    if per_class == 0 or per_value == n * (n - 1):
        return 0.0
    by_chance = per_value / (n * (n - 1))
    return max(0.0, (cells / per_class - by_chance) / (1 - by_chance))


def overlap(one: Mapping[int, str], other: Mapping[int, str]) -> float:
    r"""How far two conditions sort the sentences alike: Jaccard index of their pairs.

    Of the sentences that have a value of both, let P_c be the pairs that share their value of c:

        J = |P_1 and P_2| / |P_1 or P_2|

    0 if one of them has a single value there: it sorts nothing, so it tells nothing.
    """
    common = [number for number in one if number in other]
    first, second = Counter(one[i] for i in common), Counter(other[i] for i in common)
    if len(first) < 2 or len(second) < 2:
        return 0.0
    both = _ordered_pairs(Counter((one[i], other[i]) for i in common).values())
    either = _ordered_pairs(first.values()) + _ordered_pairs(second.values()) - both
    return both / either if either else 0.0


def _ordered_pairs(counts: Iterable[int]) -> int:
    return sum(count * (count - 1) for count in counts)
