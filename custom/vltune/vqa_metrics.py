"""Accuracy of VQA v2: the published normalisation of answers and the mean over annotators.

Facts about the rules are from the evaluation page of visualqa.org and Antol et al. 2015, section 3.
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

AGREEMENT = 3
"""Annotators that must agree for full accuracy."""

_NUMBER_WORDS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
)
NUMBERS = {"none": "0"} | {word: str(value) for value, word in enumerate(_NUMBER_WORDS)}
ARTICLES = frozenset({"a", "an", "the"})

_CONTRACTED = (
    *("ain't", "aren't", "can't", "could've", "couldn't", "couldn't've", "didn't", "doesn't"),
    *("don't", "hadn't", "hadn't've", "hasn't", "haven't", "he'd", "he'd've", "he's", "how'd"),
    *("how'll", "how's", "isn't", "it'd", "it'd've", "it'll", "let's", "ma'am", "mightn't"),
    *("mightn't've", "might've", "mustn't", "must've", "needn't", "not've", "o'clock", "oughtn't"),
    *("shan't", "she'd've", "should've", "shouldn't", "shouldn't've", "somebody'd've"),
    *("somebody'll", "somebody's", "someone'd", "someone'd've", "someone'll", "someone's"),
    *("something'd", "something'd've", "something'll", "that's", "there'd", "there'd've"),
    *("there're", "there's", "they'd", "they'd've", "they'll", "they're", "they've", "'twas"),
    *("wasn't", "we'd've", "we've", "weren't", "what'll", "what're", "what's", "what've", "when's"),
    *("where'd", "where's", "where've", "who'd", "who'd've", "who'll", "who's", "who've"),
    *("why'll", "why're", "why's", "won't", "would've", "wouldn't", "wouldn't've", "y'all"),
    *("y'all'll", "y'all'd've", "you'd", "you'd've", "you'll", "you're", "you've"),
)
"""Contractions that are known without their apostrophes; "well", "its", "id" are words instead."""

_REMOVED = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_DIGITS_WITH_COMMA = re.compile(r"\d,\d")


def _without_apostrophes() -> dict[str, str]:
    """Every way to leave out some apostrophes of a contraction -> the contraction."""
    found = {}
    for word in _CONTRACTED:
        places = [index for index, char in enumerate(word) if char == "'"]
        for count in range(1, len(places) + 1):
            for left_out in combinations(places, count):
                short = "".join(char for i, char in enumerate(word) if i not in left_out)
                found[short] = word
    return found


CONTRACTIONS = _without_apostrophes()


def normalise_vqa_answer(text: str) -> str:
    """The form in which VQA v2 compares answers.

    Punctuation is removed where it stands beside a space (everywhere in a text with a comma between
    digits), else it becomes a space; periods that no digit follows vanish. Then: lower case,
    number words up to ten to digits, articles left out, apostrophes of contractions put back.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    has_number = _DIGITS_WITH_COMMA.search(text) is not None
    cleaned = text
    for mark in _REMOVED:
        is_beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if is_beside_space or has_number else " ")
    words = _PERIOD.sub("", cleaned).lower().split()
    numbered = [NUMBERS.get(word, word) for word in words]
    return " ".join(CONTRACTIONS.get(word, word) for word in numbered if word not in ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Official accuracy: mean over annotators of min(1, matches among the others / 3).

    With ten answers of which m match: 0, 0.3, 0.6, 0.9 for m = 0 to 3, and 1 from four on. Source:
    visualqa.org/evaluation. Deviation: answers are normalised also where all ten are alike.

    Args:
        prediction: What the model said.
        answers: One for each annotator, repeats included, at least two.

    Raises:
        ValueError: Fewer than two answers: without the one left out nobody would be there.
    """
    if isinstance(answers, str) or len(answers) < 2:
        raise ValueError(
            f"expected the answers of at least two annotators, got {type(answers).__name__} of "
            f"length {len(answers)}"
        )
    said = normalise_vqa_answer(prediction)
    matches = Counter(normalise_vqa_answer(answer) for answer in answers)[said]
    without_match = min(1.0, matches / AGREEMENT)
    without_other = min(1.0, max(0, matches - 1) / AGREEMENT)
    return (matches * without_other + (len(answers) - matches) * without_match) / len(answers)


def simple_vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The short form that papers print: min(1, matches / 3).

    At three matches of ten it says 1 where the official form says 0.9; it is never the smaller one.

    Raises:
        ValueError: No answer.
    """
    if isinstance(answers, str) or not answers:
        raise ValueError("expected a list of accepted answers, at least one")
    said = normalise_vqa_answer(prediction)
    return min(1.0, sum(said == normalise_vqa_answer(answer) for answer in answers) / AGREEMENT)


def mean_vqa_accuracy(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """Mean official accuracy.

    Args:
        predictions: N answers of the model, N >= 1.
        answers: Of the annotators, in the same order.

    Raises:
        ValueError: The lengths disagree, or there is nothing to measure.
    """
    if len(predictions) != len(answers) or not predictions:
        raise ValueError(
            f"expected as many predictions as questions, at least 1, got {len(predictions)} and "
            f"{len(answers)}"
        )
    pairs = zip(predictions, answers, strict=True)
    return sum(vqa_accuracy(said, meant) for said, meant in pairs) / len(predictions)
