import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from vltune.files import OutputError
from vltune_lab.discovery.backend import Answer
from vltune_lab.discovery.prompts import describe_question
from vltune_lab.discovery.raw_answers import RawAnswers, answers_path, question_key

GOOD = Answer("犬 \u2028 text", "m", 7)


def test_answers_are_found_again(tmp_path: Path) -> None:
    path = answers_path(tmp_path / "new" / "my.list.json")
    assert path.name == "my.list.answers.jsonl"
    raw = RawAnswers(path)
    raw.keep("a", GOOD, "")
    raw.keep("b", GOOD, "no JSON")
    again = RawAnswers(path)
    assert (again.find("a"), again.find("b"), len(again)) == (GOOD, None, 1)
    assert [json.loads(line)["problem"] for line in path.read_text().splitlines()] == [
        "",
        "no JSON",
    ]
    assert again.digest(["a"]) == raw.digest(["a"])


def test_a_line_that_was_cut_off_does_not_hurt(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    RawAnswers(path).keep("a", GOOD, "")
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:30])
    raw = RawAnswers(path)
    raw.keep("b", GOOD, "")
    again = RawAnswers(path)
    assert (again.find("a"), again.find("b"), len(again)) == (GOOD, GOOD, 2)
    assert path.read_bytes().startswith(whole), "what was there is never changed"


def test_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'[]\n{"key": 1}\n\xff\xfe\n\nnull\n')
    assert len(RawAnswers(path)) == 0


def test_many_threads(tmp_path: Path) -> None:
    raw = RawAnswers(tmp_path / "x.jsonl")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: raw.keep(str(i), replace(GOOD, text="t" * i), ""), range(100)))
    again = RawAnswers(raw.path)
    assert len(again) == 100
    assert all(len(again.find(str(i)).text) == i for i in range(100))


def test_the_key_depends_on_all_that_the_answer_does() -> None:
    question = describe_question([(0, ("a", "b"))], 0.7, 5)
    keys = {
        question_key(question, {"model": "m"}),
        question_key(question, {"model": "n"}),
        question_key(replace(question, seed=6), {"model": "m"}),
        question_key(describe_question([(0, ("b", "a"))], 0.7, 5), {"model": "m"}),
    }
    assert len(keys) == 4


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_text("")
    with pytest.raises(OutputError, match=r"file/x\.jsonl: cannot keep the answers"):
        RawAnswers(taken / "x.jsonl")
