"""Metrics of generated answers, in every script. Values in [0, 1]; pure functions on text.

Three views of one answer: equal (`exact_match`, `soft_accuracy`), same words (`token_f1`), same
words in the same order (`rouge_l`); and whether a model prefers the better answer of a pair.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

VQA_AGREEMENT = 3
"""Accepted answers that must agree for full soft accuracy (Antol et al. 2015, section 3)."""

_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x4DBF),  # ideographs
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
"""Scripts written without spaces: each character is a token of its own."""


@dataclass(frozen=True)
class TextMetrics:
    """Means over one set of answers.

    Attributes:
        exact_match: Share of answers equal to an accepted one.
        soft_accuracy: Mean VQA-style accuracy; at most 1/3 where one answer is accepted.
        token_f1: Mean best token F1.
        rouge_l: Mean best ROUGE-L F-measure.
        num_examples: Answers.
    """

    exact_match: float
    soft_accuracy: float
    token_f1: float
    rouge_l: float
    num_examples: int


def normalise_answer(text: str) -> str:
    """The form in which answers are compared.

    Unicode NFC, case folded (so that "Straße" equals "STRASSE"), runs of white space made one
    space, white space around and punctuation at the end cut off. Articles and everything else stay.
    """
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    joined = " ".join(folded.split())
    while joined and (joined[-1].isspace() or unicodedata.category(joined[-1]).startswith("P")):
        joined = joined[:-1]
    return joined


def tokens(text: str) -> list[str]:
    """Words of the normalised text: runs of letters, marks and digits.

    In scripts without spaces each character, with the marks after it, is a token.
    """
    found: list[str] = []
    last = " "
    for char in normalise_answer(text):
        kind = unicodedata.category(char)[0]
        joins = kind == "M" or not (_is_unspaced(char) or _is_unspaced(last))
        if kind in "LMN":
            if joins and unicodedata.category(last)[0] in "LMN":
                found[-1] += char
            else:
                found.append(char)
        last = char
    return found


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 where the prediction equals an accepted answer after `normalise_answer`, else 0."""
    _check_answers(answers)
    said = normalise_answer(prediction)
    return float(any(said == normalise_answer(answer) for answer in answers))


def soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """min(1, accepted answers equal to the prediction / 3).

    Source: Antol et al. 2015 (VQA), section 3. Deviation: `normalise_answer` in place of VQA's own
    normalisation, and no mean over subsets of the annotators.

    Args:
        prediction: What the model said.
        answers: One for each annotator, repeats included.
    """
    _check_answers(answers)
    said = normalise_answer(prediction)
    return min(1.0, sum(said == normalise_answer(answer) for answer in answers) / VQA_AGREEMENT)


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Best F1 of the bags of tokens over the accepted answers.

    Source: Rajpurkar et al. 2016 (SQuAD), section 6.1. Deviation: articles count as words.
    """
    _check_answers(answers)
    said = tokens(prediction)
    return max(_bag_f1(said, tokens(answer)) for answer in answers)


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """Best ROUGE-L F-measure (beta 1) over the accepted answers.

    2 P R / (P + R), P and R the longest common subsequence of tokens over the length of
    prediction and answer. Source: Lin 2004 (ROUGE), section 3.1, without stemming.
    """
    _check_answers(answers)
    said = tokens(prediction)
    return max(
        _f_measure(longest_common_subsequence(said, meant), len(said), len(meant))
        for meant in map(tokens, answers)
    )


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest sequence that is in both, in order but not necessarily adjacent."""
    best = [0] * (len(second) + 1)
    for item in first:
        diagonal = 0
        for column, other in enumerate(second, 1):
            above = best[column]
            best[column] = diagonal + 1 if item == other else max(above, best[column - 1])
            diagonal = above
    return best[-1]


def preference_accuracy(chosen: NDArray[np.float64], rejected: NDArray[np.float64]) -> float:
    """Share of pairs in which the chosen answer is the more likely one; a tie counts half.

    Args:
        chosen: Log-likelihoods of the chosen answers, (N,), finite, N >= 1.
        rejected: Of the rejected answers, in the same order, (N,), finite.

    Raises:
        ValueError: The shapes disagree, there is no pair, or a value is not finite.
    """
    if chosen.shape != rejected.shape or chosen.ndim != 1 or not len(chosen):
        raise ValueError(
            f"expected two vectors (N,) with N >= 1, got {chosen.shape} and {rejected.shape}"
        )
    broken = int((~np.isfinite(chosen)).sum() + (~np.isfinite(rejected)).sum())
    if broken:
        raise ValueError(f"{broken} log-likelihoods are not finite")
    return float(((chosen > rejected) + 0.5 * (chosen == rejected)).mean())


def text_metrics(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> TextMetrics:
    """Compute the means of all metrics.

    Args:
        predictions: N answers of the model, N >= 1.
        answers: The accepted answers of each, in the same order.

    Raises:
        ValueError: The lengths disagree, there is nothing to measure, or a sample has no answer.
    """
    if len(predictions) != len(answers) or not predictions:
        raise ValueError(
            f"expected as many predictions as samples, at least 1, got {len(predictions)} and "
            f"{len(answers)}"
        )
    pairs = list(zip(predictions, answers, strict=True))

    def mean(values: list[float]) -> float:
        return float(np.mean(values))

    return TextMetrics(
        exact_match=mean([exact_match(said, meant) for said, meant in pairs]),
        soft_accuracy=mean([soft_accuracy(said, meant) for said, meant in pairs]),
        token_f1=mean([token_f1(said, meant) for said, meant in pairs]),
        rouge_l=mean([rouge_l(said, meant) for said, meant in pairs]),
        num_examples=len(pairs),
    )


def _check_answers(answers: Sequence[str]) -> None:
    if isinstance(answers, str) or not answers:
        raise ValueError(
            f"expected a list of accepted answers, at least one, got {type(answers).__name__} "
            f"of length {len(answers)}"
        )


def _is_unspaced(char: str) -> bool:
    return any(low <= ord(char) <= high for low, high in _UNSPACED)


def _bag_f1(said: list[str], meant: list[str]) -> float:
    return _f_measure((Counter(said) & Counter(meant)).total(), len(said), len(meant))


def _f_measure(common: int, num_said: int, num_meant: int) -> float:
    """2 P R / (P + R) with P = common / num_said, R = common / num_meant; two empty texts agree."""
    if not num_said or not num_meant:
        return float(num_said == num_meant)
    return 2 * common / (num_said + num_meant)
