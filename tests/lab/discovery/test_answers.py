import json

import pytest

from vltune_lab.discovery.answers import (
    AnswerError,
    RawCondition,
    find_object,
    one_line,
    read_conditions,
    read_sentences,
)
from vltune_lab.discovery.backend import Answer


def answer(content: object, *, is_cut: bool = False) -> Answer:
    text = content if isinstance(content, str) else json.dumps(content)
    return Answer(text, "m", 1, is_cut=is_cut)


def test_sentences_of_the_asked_ids_only() -> None:
    entries = [
        {"id": 3, "sentence": " A cat\n on a mat. "},
        {"id": "4", "sentence": "A dog."},
        {"id": 4, "sentence": "Again."},
        {"id": 9, "sentence": "Not asked."},
        {"id": True, "sentence": "No id."},
        {"id": 5, "sentence": "x" * 601},
        "nothing",
    ]
    found = read_sentences(answer({"sentences": entries}), [3, 4, 5])
    assert found == {3: "A cat on a mat.", 4: "A dog."}


def test_half_of_the_sentences_are_enough_and_fewer_are_not() -> None:
    content = {"sentences": [{"id": 0, "sentence": "A cat."}]}
    assert read_sentences(answer(content), [0, 1]) == {0: "A cat."}
    with pytest.raises(AnswerError, match="has sentences for 1 of 3"):
        read_sentences(answer(content), [0, 1, 2])


@pytest.mark.parametrize("echo", ["<text>", " <your sentence> ", "...", "…", "-_-"])
def test_a_form_that_is_handed_back_is_no_text(echo: str) -> None:
    sentences = {"sentences": [{"id": 0, "sentence": echo}]}
    with pytest.raises(AnswerError, match="has sentences for 0 of 1"):
        read_sentences(answer(sentences), [0])
    value = {"value": echo, "sentences": [0]}
    content = {"conditions": [{"name": "light", "gloss": echo, "values": [value]}]}
    assert read_conditions(answer(content), [0]) == [RawCondition("light", "", {})]
    content["conditions"][0]["name"] = echo
    with pytest.raises(AnswerError, match="no condition with a name"):
        read_conditions(answer(content), [0])


def test_conditions_with_their_values() -> None:
    entries = [
        {
            "name": "Light\n",
            "gloss": "How bright.",
            "values": [
                {"value": "Dark", "sentences": [1, "2", 99, None]},
                {"value": "bright", "sentences": [2, 3]},
                {"value": 5, "sentences": [4]},
                {"value": "dim", "sentences": 4},
            ],
        },
        {"name": "pose"},
        {"name": "", "gloss": "nameless"},
        {"gloss": "nameless"},
    ]
    light, pose = read_conditions(answer({"conditions": entries}), [1, 2, 3, 4])
    assert (light.name, light.gloss) == ("Light", "How bright.")
    assert light.values == {1: "dark", 2: "dark", 3: "bright"}
    assert (pose.name, pose.gloss, pose.values) == ("pose", "", {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"conditions": [{"name": "li', "no JSON object with 'conditions'"),
        ("", "no JSON object"),
        ("[1, 2]", "no JSON object"),
        ({"answer": 1}, "no JSON object"),
        ({"conditions": "light"}, "is no list"),
        ({"conditions": []}, "no condition with a name"),
        ("[" * 100_000, "no JSON object"),
    ],
)
def test_what_is_no_answer(content: object, message: str) -> None:
    with pytest.raises(AnswerError, match=message):
        read_conditions(answer(content), [0])


def test_a_cut_answer_is_not_used_even_if_it_reads_well() -> None:
    content = {"sentences": [{"id": 0, "sentence": "A cat."}]}
    with pytest.raises(AnswerError, match="was cut off"):
        read_sentences(answer(content, is_cut=True), [0])


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}',
        'Here {it} is: ```json\n{"a": 1}\n``` {"a": 2}',
        '<think>{"b": 0}</think>{"a": 1}',
        '{{"a": 1}}',
    ],
)
def test_the_first_object_with_the_key(text: str) -> None:
    assert find_object(text, "a") == {"a": 1}


def test_one_line_has_nothing_unseen() -> None:
    assert one_line("a\u2028b\u200bc\ud800 \x00") == "a bc"
    assert one_line("cafe\u0301") == "café"
    assert one_line(None) == ""
