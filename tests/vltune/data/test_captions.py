"""Prompts with accepted answers."""

from pathlib import Path
from typing import Any

import pytest
from answer_files import write_images, write_lines

from vltune.data.captions import load_captions
from vltune.data.image_text import Record
from vltune.data.rows import RecordError


def row(number: int, **change: Any) -> dict[str, Any]:
    values = {"image": f"images/{number}.png", "prompt": "what?", "answer": "a dog"} | change
    return {key: value for key, value in values.items() if value is not None}


def test_an_answer_for_a_prompt(tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    samples = load_captions([write_lines(tmp_path / "a.jsonl", [row(1), row(0, answer="猫")])])
    assert samples.records == (Record(0, "what?", ("a dog",)), Record(1, "what?", ("猫",)))


def test_several_answers_and_the_word_question(tmp_path: Path) -> None:
    """Repeats stay: three annotators that agree count for soft accuracy."""
    write_images(tmp_path, 1)
    several = row(0, prompt=None, answer=None, question="what?", answers=["dog", "dog ", "puppy"])
    samples = load_captions([write_lines(tmp_path / "a.jsonl", [several])])
    assert samples.records == (Record(0, "what?", ("dog", "dog", "puppy")),)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": (row(0, prompt=None), "has neither of prompt and question"),
    "two prompts": (row(0, question="a"), "has both of prompt and question"),
    "no answer": (row(0, answer=None), "has neither of answer and answers"),
    "two answers": (row(0, answers=["a"]), "has both of answer and answers"),
    "list as answer": (row(0, answer=["a"]), "'answer' is list"),
    "pairs": (row(0, rejected="b"), "unknown key 'rejected'.*data: preference"),
    "unknown": (row(0, id=3), "unknown key 'id'"),
    "empty": (row(0, answer=""), "'answer' is empty"),
    "mixed": (
        row(0, prompt=None, question="a"),
        r"line 2: has 'question' and 'answer', but the first row \(.*line 1\) has 'prompt'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_rows(case: str, tmp_path: Path) -> None:
    wrong, message = WRONG[case]
    write_images(tmp_path, 2)
    path = write_lines(tmp_path / "a.jsonl", [row(1), wrong])
    with pytest.raises(RecordError, match=message) as caught:
        load_captions([path])
    assert str(caught.value).startswith(f"{path}: line 2: ")


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([], "'answers' is empty"),
        ("dog", "'answers' is str; expected a list"),
        (["dog", " "], r"'answers\[1\]' is empty"),
        (["dog", 3], r"'answers\[1\]' is int"),
    ],
)
def test_wrong_lists_of_answers(answers: Any, message: str, tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    path = write_lines(tmp_path / "a.jsonl", [row(0, answer=None, answers=answers)])
    with pytest.raises(RecordError, match=message):
        load_captions([path])


def test_files_of_one_part_use_the_same_keys(tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    first = write_lines(tmp_path / "a.jsonl", [row(0)])
    second = write_lines(tmp_path / "b.jsonl", [row(1, answer=None, answers=["a"])])
    with pytest.raises(RecordError, match=r"b\.jsonl: line 1: has 'prompt' and 'answers', but"):
        load_captions([first, second])
