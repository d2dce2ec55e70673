import json
from pathlib import Path
from typing import Any

import pytest

from vltune.geneval_prompts import PromptError, as_lines, read_prompts

POSITION = {
    "tag": "position",
    "include": [
        {"class": "teddy bear", "count": 1},
        {"class": "dog", "count": 1, "position": ["right of", 0]},
    ],
    "prompt": "a photo of a dog right of a teddy bear",
}
COUNTING = {
    "tag": "counting",
    "include": [{"class": "clock", "count": 2}],
    "exclude": [{"class": "clock", "count": 3}],
    "prompt": "a photo of two clocks",
}


def written(tmp_path: Path, *rows: Any) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_reads_the_published_form_and_writes_it_back(tmp_path: Path) -> None:
    path = written(tmp_path, POSITION, "", COUNTING)
    position, counting = read_prompts(path)
    assert position.include[1].position == ("right of", 0)
    assert position.classnames == {"teddy bear", "dog"}
    assert (counting.include[0].count, counting.exclude[0].count) == (2, 3)
    again = tmp_path / "again.jsonl"
    again.write_text(as_lines([position, counting]))
    assert read_prompts(again) == (position, counting)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tag": "colour"}, "tag of type str; expected one of single_object"),
        ({"prompt": " "}, "prompt of type str is no text"),
        ({"include": []}, "'include' is empty"),
        ({"include": "dog"}, "'include' is str; expected a list"),
        ({"include": [{"class": "dog"}]}, r"include\[0\]: key 'count' is missing"),
        ({"include": [{"class": "dog", "count": 0}]}, "count 0; expected 1 to 16"),
        ({"include": [{"class": "dog", "count": True}]}, "count True"),
        ({"include": [{"class": 3, "count": 1}]}, "class 3 is no name"),
        (
            {"include": [{"class": "dog", "count": 1, "color": "teal"}]},
            "color of type str; expected",
        ),
        ({"include": [{"class": "dog", "count": 1, "colour": "red"}]}, "1 unknown keys"),
        ({"include": [{"class": "d", "count": 1, "position": ["left of", 0]}]}, "earlier one"),
        ({"include": [{"class": "d", "count": 1, "position": ["near", 0]}]}, "position"),
        (
            {"exclude": [{"class": "dog", "count": 1, "color": "red"}]},
            r"exclude\[0\]: 1 unknown keys",
        ),
        ({"answer": "x"}, "1 unknown keys"),
    ],
)
def test_a_wrong_line_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        read_prompts(written(tmp_path, POSITION, COUNTING | change))
    assert "prompts.jsonl: line 2" in str(caught.value)
    assert "colour'" not in str(caught.value)  # no value: messages may reach the server


def test_a_wrong_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="no such file"):
        read_prompts(tmp_path / "none.jsonl")
    with pytest.raises(PromptError, match="has no prompts"):
        read_prompts(written(tmp_path, "", ""))
    with pytest.raises(PromptError, match="line 1: not JSON"):
        read_prompts(written(tmp_path, "{"))
    with pytest.raises(PromptError, match="expected an object, got list"):
        read_prompts(written(tmp_path, "[]"))
    path = tmp_path / "latin.jsonl"
    path.write_bytes("é".encode("latin-1"))
    with pytest.raises(PromptError, match="UTF-8"):
        read_prompts(path)
