"""Captioned images to learn drawing from."""

from pathlib import Path
from typing import Any

import pytest
from answer_files import write_images, write_lines

from vltune.data.drawings import load_drawings
from vltune.data.image_text import Record
from vltune.data.rows import RecordError


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"image": f"images/{number}.png", **(more or {"caption": f"{number} dogs"})}


def test_captions_become_prompts_without_answers(tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    path = write_lines(tmp_path / "a.jsonl", [row(1), row(0)])
    assert load_drawings([path]).records == (Record(0, "1 dogs", ()), Record(1, "0 dogs", ()))
    path = write_lines(tmp_path / "b.jsonl", [row(0, prompt="a dog")])
    assert load_drawings([path]).records == (Record(0, "a dog", ()),)


def test_several_captions_of_an_image(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    samples = load_drawings([write_lines(tmp_path / "a.jsonl", [row(0, captions=["x", "y"])])])
    assert samples.records == (Record(0, "x", ()), Record(0, "y", ()))
    assert len(samples.images) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (row(0, answer="a"), "unknown key 'answer'.*Rows with answers belong to `vqa`"),
        ({"image": "images/0.png"}, "has 0 of caption, prompt, captions; give one"),
        (row(0, caption="a", prompt="b"), "has 2 of caption, prompt, captions; give one"),
        (row(0, caption=""), "'caption' is empty"),
        (row(0, captions=[]), "'captions' is empty"),
        (row(0, captions="a"), "'captions' is str"),
        (row(0, prompt="a"), r"has 'prompt', but the first row .* has 'caption'"),
    ],
)
def test_wrong_rows(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    first = row(1, captions=["a"]) if "captions" in wrong else row(1)
    path = write_lines(tmp_path / "a.jsonl", [first, wrong])
    with pytest.raises(RecordError, match=message) as caught:
        load_drawings([path])
    assert str(caught.value).startswith(f"{path}: line 2: ")
