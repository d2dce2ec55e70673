"""Metrics of answers; every number by hand."""

import itertools

import numpy as np
import pytest

from vltune.text_metrics import (
    exact_match,
    longest_common_subsequence,
    normalise_answer,
    preference_accuracy,
    rouge_l,
    soft_accuracy,
    text_metrics,
    token_f1,
    tokens,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Two   Dogs. ", "two dogs"),
        ("yes!?", "yes"),
        ("yes . ", "yes"),
        ("the dog", "the dog"),
        ("Straße", "strasse"),
        ("Zu\u0308rich", "zürich"),
        ("到处都是狗。", "到处都是狗"),
        ("¿Dos?", "¿dos"),
        ("3.5", "3.5"),
        ("St. Gallen", "st. gallen"),
        ("a\u3000b\tc\n", "a b c"),
        ("...", ""),
    ],
)
def test_normalised_answers(text: str, expected: str) -> None:
    assert normalise_answer(text) == expected
    assert normalise_answer(expected) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Two dogs, one cat.", ["two", "dogs", "one", "cat"]),
        ("don't", ["don", "t"]),
        ("zwei Stühle", ["zwei", "stühle"]),
        ("два кота", ["два", "кота"]),
        ("两只狗 dog", ["两", "只", "狗", "dog"]),
        ("3只狗x", ["3", "只", "狗", "x"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("น้ำ", ["น้", "ำ"]),
        ("두 마리", ["두", "마리"]),
        ("", []),
        ("!?", []),
    ],
)
def test_tokens_of_several_scripts(text: str, expected: list[str]) -> None:
    """Hindi's vowel signs and Thai's tone marks are marks: they stay with the letter before."""
    assert tokens(text) == expected


def test_exact_match_takes_any_accepted_answer() -> None:
    assert exact_match("Two dogs.", ["2 dogs", "two DOGS"]) == 1
    assert exact_match("a dog", ["dog"]) == 0
    assert exact_match("", ["dog"]) == 0


def test_soft_accuracy_counts_agreeing_annotators() -> None:
    """0, 1, 2, 3 and 4 of the annotators agree: 0, 1/3, 2/3, 1, 1."""
    for agree, expected in enumerate((0, 1 / 3, 2 / 3, 1, 1)):
        answers = ["Red."] * agree + ["blue"] * (5 - agree)
        assert soft_accuracy("red", answers) == pytest.approx(expected)


def test_token_f1_by_hand() -> None:
    """Said: the, red, dog, dog. Meant: a, dog, dog, dog: 2 common, P 2/4, R 2/4, F1 1/2.

    Against "red dog": 2 common, P 2/4, R 2/2, F1 2/3, which is the best.
    """
    assert token_f1("the red dog dog", ["a dog dog dog"]) == pytest.approx(1 / 2)
    assert token_f1("the red dog dog", ["a dog dog dog", "red dog"]) == pytest.approx(2 / 3)
    assert token_f1("cat", ["dog"]) == 0
    assert token_f1("", ["dog"]) == 0
    assert token_f1("?", ["!"]) == 1


def test_rouge_l_by_hand() -> None:
    """Lin 2004, section 3.1: "police killed the gunman" against two candidates.

    "police kill the gunman": police, the, gunman: 3 of 4 and 3 of 4: 3/4.
    "the gunman kill police": the, gunman: 2 of 4: 1/2. "the gunman": P 2/2, R 2/4: 2/3.
    """
    reference = ["police killed the gunman"]
    assert rouge_l("police kill the gunman", reference) == pytest.approx(3 / 4)
    assert rouge_l("the gunman kill police", reference) == pytest.approx(1 / 2)
    assert rouge_l("The gunman.", reference) == pytest.approx(2 / 3)
    assert rouge_l("The gunman.", [*reference, "gunman"]) == pytest.approx(2 / 3)
    assert token_f1("the gunman kill police", reference) == pytest.approx(3 / 4)


def test_longest_common_subsequence_agrees_with_trying_all() -> None:
    def slow(first: str, second: str) -> int:
        for length in range(len(first), 0, -1):
            for kept in itertools.combinations(first, length):
                rest = iter(second)
                if all(item in rest for item in kept):
                    return length
        return 0

    rng = np.random.default_rng(3)
    for _ in range(100):
        first = "".join(rng.choice(list("abc"), rng.integers(0, 7)))
        second = "".join(rng.choice(list("abc"), rng.integers(0, 8)))
        assert longest_common_subsequence(first, second) == slow(first, second)


def test_preference_accuracy_counts_ties_half() -> None:
    """Won, lost, tied, won: (1 + 0 + 1/2 + 1) / 4."""
    chosen, rejected = np.array([-1.0, -3.0, -2.0, -0.5]), np.array([-2.0, -1.0, -2.0, -7.0])
    assert preference_accuracy(chosen, rejected) == pytest.approx(2.5 / 4)
    assert preference_accuracy(rejected, chosen) == pytest.approx(1.5 / 4)


@pytest.mark.parametrize(
    ("chosen", "rejected", "message"),
    [
        ([], [], "at least|N >= 1"),
        ([1.0], [1.0, 2.0], r"\(1,\) and \(2,\)"),
        ([[1.0]], [[1.0]], r"\(1, 1\)"),
        ([np.nan, 1.0], [np.inf, 1.0], "2 log-likelihoods are not finite"),
    ],
)
def test_wrong_likelihoods(chosen: list[float], rejected: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preference_accuracy(np.array(chosen), np.array(rejected))


def test_means_of_a_set() -> None:
    """One equal answer, and one with two of three words: F1 and ROUGE-L 2 * 2 / (3 + 2) = 4/5."""
    result = text_metrics(["Two", "a red dog"], [["two"], ["red dog"]])
    assert result.exact_match == 1 / 2
    assert result.soft_accuracy == pytest.approx(1 / 6)
    assert result.token_f1 == result.rouge_l == pytest.approx(9 / 10)
    assert result.num_examples == 2


def test_a_set_without_answers_is_refused() -> None:
    with pytest.raises(ValueError, match="got 0 and 0"):
        text_metrics([], [])
    with pytest.raises(ValueError, match="got 1 and 2"):
        text_metrics(["a"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="at least one"):
        text_metrics(["a"], [[]])
    with pytest.raises(ValueError, match="got str"):
        exact_match("a", "a")
