"""The official files of VQA v2."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vqa_files import annotation, write_json, write_vqa

from vltune.data.images import ImageError
from vltune.data.rows import RecordError
from vltune.data.vqa import load_vqa, most_common_first
from vltune.site_data import VqaFiles


def files_of(folder: Path, **more: Any) -> VqaFiles:
    return VqaFiles(
        folder / "questions.json", folder / "annotations.json", folder / "images", **more
    )


def test_ten_answers_the_most_common_first(tmp_path: Path) -> None:
    write_vqa(tmp_path)
    samples = load_vqa(files_of(tmp_path))
    assert (len(samples.records), len(samples.images)) == (6, 3)
    first = samples.records[0]
    assert first.prompt == "What is 0?"
    assert first.answers == ("dog", *["cat"] * 4, *["dog"] * 5)
    assert [record.image for record in samples.records] == [0, 0, 1, 1, 2, 2]


def test_the_most_common_answer_and_ties() -> None:
    assert most_common_first(["a", "b", "b"])[0] == "b"
    assert most_common_first(["a", "b", "c"], "c") == ("c", "a", "b")
    assert most_common_first(["a", "b", "b"], "a")[0] == "b"
    assert most_common_first(["a", "b"], "z") == ("a", "b")


def test_a_person_may_say_nothing(tmp_path: Path) -> None:
    """Nine empty answers are still nine people, but nothing to learn from."""
    write_vqa(tmp_path, range(1), 1)
    answers = ["", "", " ", "cat", *[""] * 6]
    annotations = {"annotations": [annotation(0, 0, answers)]}
    write_json(tmp_path / "annotations.json", annotations)
    (record,) = load_vqa(files_of(tmp_path)).records
    assert record.answers == ("cat", *[""] * 9)


def test_names_by_pattern(tmp_path: Path) -> None:
    write_vqa(tmp_path)
    for image in range(3):
        old = tmp_path / "images" / f"COCO_train2014_{image:012d}.jpg"
        old.rename(tmp_path / "images" / f"x{image}.jpg")
    assert len(load_vqa(files_of(tmp_path, pattern="x%d.jpg")).images) == 3
    with pytest.raises(ImageError, match="3 of 3 images cannot be used"):
        load_vqa(files_of(tmp_path))
    with pytest.raises(RecordError, match="does not stay inside"):
        load_vqa(files_of(tmp_path, pattern="../x%d.jpg"))
    with pytest.raises(ValueError, match="expected a file name with one %d"):
        files_of(tmp_path, pattern="x%s.jpg")


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    write_json(path, content)


def answers_of(content: dict[str, Any]) -> list[Any]:
    found: list[Any] = content["annotations"][1]["answers"]
    return found


QUESTIONS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no list": (lambda c: c.pop("questions"), "'questions' is missing"),
    "empty": (lambda c: c["questions"].clear(), "'questions' is empty"),
    "twice": (lambda c: c["questions"].append(c["questions"][0]), "question_id 0 is there twice"),
    "no id": (
        lambda c: c["questions"][1].pop("question_id"),
        r"questions\[1\]: question_id is NoneType",
    ),
    "text id": (
        lambda c: c["questions"][1].update(question_id="1"),
        "question_id is str; expected a whole",
    ),
    "one more": (
        lambda c: c["questions"].append({"question_id": 9, "image_id": 0, "question": "?"}),
        r"annotations\.json: question 9 and 0 others of the other file are not in it",
    ),
    "one fewer": (lambda c: c["questions"].pop(), r"questions\.json: question 2001 and 0 others"),
    "no text": (lambda c: c["questions"][1].pop("question"), "question 1: 'question' is NoneType"),
    "image text": (
        lambda c: c["questions"][1].update(image_id="x"),
        "question 1: image_id is str or",
    ),
    "other image": (
        lambda c: c["questions"][1].update(image_id=2),
        "question 1: image_id differs from that of the questions file",
    ),
    "no subtype": (lambda c: c.pop("data_subtype"), "says no 'data_subtype'.*Give `pattern:"),
}
ANNOTATIONS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "nine": (lambda c: answers_of(c).pop(), "question 1: 'answers' is 9 entries; expected a list"),
    "none": (lambda c: c["annotations"][1].pop("answers"), "question 1: 'answers' is NoneType"),
    "empty": (
        lambda c: [item.update(answer=" ") for item in answers_of(c)],
        "question 1: all 10 answers are empty",
    ),
    "number": (
        lambda c: answers_of(c)[3].update(answer=2),
        r"'answers\[3\]' is int; expected text",
    ),
    "no key": (
        lambda c: answers_of(c)[3].pop("answer"),
        r"'answers\[3\]': key 'answer' is missing",
    ),
}


@pytest.mark.parametrize("case", QUESTIONS)
def test_wrong_questions(case: str, tmp_path: Path) -> None:
    write_vqa(tmp_path)
    edit, message = QUESTIONS[case]
    change(tmp_path / "questions.json", edit)
    with pytest.raises(RecordError, match=message):
        load_vqa(files_of(tmp_path))


@pytest.mark.parametrize("case", ANNOTATIONS)
def test_wrong_annotations(case: str, tmp_path: Path) -> None:
    write_vqa(tmp_path)
    edit, message = ANNOTATIONS[case]
    change(tmp_path / "annotations.json", edit)
    with pytest.raises(RecordError, match=message) as caught:
        load_vqa(files_of(tmp_path))
    assert "annotations.json" in str(caught.value)


def test_files_that_are_no_files(tmp_path: Path) -> None:
    write_vqa(tmp_path)
    path = tmp_path / "annotations.json"
    for content, message in ((b"{", "not JSON"), (b"[]", "expected an object"), (b"\xff", "UTF-8")):
        path.write_bytes(content)
        with pytest.raises(RecordError, match=message):
            load_vqa(files_of(tmp_path))
    path.unlink()
    with pytest.raises(RecordError, match=r"no such file.*Correct `annotations:`"):
        load_vqa(files_of(tmp_path))


def test_a_bad_image_may_be_left_out_with_its_questions(tmp_path: Path) -> None:
    write_vqa(tmp_path)
    (tmp_path / "images" / "COCO_train2014_000000000001.jpg").write_bytes(b"no image")
    samples = load_vqa(files_of(tmp_path), on_bad_image="skip", max_skipped_share=0.5)
    assert (len(samples.images), samples.num_skipped, samples.num_skipped_records) == (2, 1, 2)
