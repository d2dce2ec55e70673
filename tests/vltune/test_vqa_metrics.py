"""VQA v2's rules; the expected numbers are worked out in the docstrings."""

from itertools import permutations

import pytest

from vltune.vqa_metrics import (
    CONTRACTIONS,
    mean_vqa_accuracy,
    normalise_vqa_answer,
    simple_vqa_accuracy,
    vqa_accuracy,
)


@pytest.mark.parametrize(
    ("said", "form"),
    [
        ("The Dog", "dog"),
        ("a an the", ""),
        ("two dogs", "2 dogs"),
        ("None", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldn't've"),
        ("its", "its"),
        ("well", "well"),
        ("yes.", "yes"),
        ("3.5", "3.5"),
        ("st. john", "st john"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("black, white", "black white"),
        ("black,white", "black white"),
        ("1,000", "1000"),
        ("1,000 t-shirts", "1000 tshirts"),
        ("t-shirt", "t shirt"),
        ("what?", "what"),
        (" left\tof\nit ", "left of it"),
        ("o'clock", "o'clock"),
        ("", ""),
    ],
)
def test_normal_forms(said: str, form: str) -> None:
    assert normalise_vqa_answer(said) == form


def test_normalising_twice_changes_nothing_more() -> None:
    for text in ("A black-and-white cat.", "THREE; four", "youve 2,500 cats!", "'twas"):
        once = normalise_vqa_answer(text)
        assert normalise_vqa_answer(once) == once
    assert all(CONTRACTIONS.get(word, word) == word for word in CONTRACTIONS.values())


@pytest.mark.parametrize(
    ("matches", "official", "simple"),
    [(0, 0.0, 0.0), (1, 0.3, 1 / 3), (2, 0.6, 2 / 3), (3, 0.9, 1.0), (4, 1.0, 1.0), (10, 1.0, 1.0)],
)
def test_ten_annotators(matches: int, official: float, simple: float) -> None:
    """Three match: leaving out one of them gives 2/3, leaving out one of seven others gives 1.

    (3 * 2/3 + 7 * 1) / 10 = 0.9.
    """
    answers = ["red"] * matches + ["blue"] * (10 - matches)
    assert vqa_accuracy("Red.", answers) == pytest.approx(official)
    assert simple_vqa_accuracy("Red.", answers) == pytest.approx(simple)


def test_the_closed_form_is_the_mean_over_annotators() -> None:
    """Computed as it is defined, for each of five annotators left out."""
    answers = ["a cat", "cat", "dog", "Cat!", "bird"]
    left_out = [answers[:index] + answers[index + 1 :] for index in range(5)]
    expected = (
        sum(
            min(1, sum(normalise_vqa_answer(other) == "cat" for other in others) / 3)
            for others in left_out
        )
        / 5
    )
    assert vqa_accuracy("cat", answers) == pytest.approx(expected)
    assert len({vqa_accuracy("cat", order) for order in permutations(answers)}) == 1


def test_mean_and_bad_calls() -> None:
    assert mean_vqa_accuracy(["yes", "2"], [["yes"] * 10, ["two"] + ["3"] * 9]) == pytest.approx(
        0.65
    )
    with pytest.raises(ValueError, match="got 1 and 2"):
        mean_vqa_accuracy(["yes"], [["yes"] * 10] * 2)
    with pytest.raises(ValueError, match="at least 1, got 0 and 0"):
        mean_vqa_accuracy([], [])
    with pytest.raises(ValueError, match="at least two annotators, got list of length 1"):
        vqa_accuracy("yes", ["yes"])
    with pytest.raises(ValueError, match="got str"):
        vqa_accuracy("yes", "yes")
    with pytest.raises(ValueError, match="at least one"):
        simple_vqa_accuracy("yes", [])
