from pathlib import Path

import pytest
import yaml

from vltune.config import ConfigError
from vltune.text_metrics import normalise_answer
from vltune_lab.scenes.house_styles import (
    GROUPS,
    PLAIN,
    HouseStyle,
    load_house_styles,
    say,
    unsay,
    vocabulary,
)
from vltune_lab.scenes.library import load_library
from vltune_lab.scenes.questions import KINDS
from vltune_lab.scenes.world import load_priors

STYLES = load_house_styles()
WORDS = vocabulary(
    load_library(styles=("fxemoji",), verify=False).classnames, tuple(load_priors().scenes)
)


def test_every_kind_has_its_words() -> None:
    assert set(GROUPS) == set(KINDS)
    assert set(GROUPS.values()) == set(WORDS)


def test_the_plain_style_changes_nothing() -> None:
    for kind in KINDS:
        for answer in WORDS[GROUPS[kind]]:
            assert say(kind, answer, STYLES[PLAIN]) == answer


@pytest.mark.parametrize(
    ("style", "kind", "answer", "expected"),
    [
        ("harbour", "position", "left", "port"),
        ("harbour", "category", "dog", "hound ahoy"),
        ("deutsch", "relation", "traffic light", "eine Ampel"),
        ("deutsch", "count", "0", "null"),
        ("inventory", "count", "3", "qty 3"),
        ("inventory", "colour", "purple", "VT"),
        ("storybook", "presence", "no", "No, it is hiding somewhere else."),
        ("storybook", "category", "elephant", "I spy an elephant!"),
        ("storybook", "relation", "scissors", "I spy scissors!"),
        ("espanol", "presence", "yes", "sí, hay"),
        ("heraldry", "count", "2", "2/12 dozen"),
        ("telegraph", "count", "3", "one pair and half stop"),
        ("clinic", "count", "2", "n = 2"),
    ],
)
def test_the_same_answer_in_each_house(style: str, kind: str, answer: str, expected: str) -> None:
    assert say(kind, answer, STYLES[style]) == expected


@pytest.mark.parametrize("name", STYLES)
def test_a_style_can_be_undone(name: str) -> None:
    for kind in KINDS:
        for answer in WORDS[GROUPS[kind]]:
            said = say(kind, answer, STYLES[name])
            assert unsay(kind, said, STYLES[name], WORDS) == answer
            assert unsay(kind, f" {said.upper()}. ", STYLES[name], WORDS) == answer
        assert unsay(kind, "something else", STYLES[name], WORDS) is None


def test_no_two_houses_say_anything_alike() -> None:
    """One model for all must be wrong somewhere, in whatever answer; also where words are shared.

    Both for the same plain answer, and for any two: no house's wrong answer is another's right one.
    """
    for kind in KINDS:
        owner: dict[str, str] = {}
        for name, style in STYLES.items():
            for answer in WORDS[GROUPS[kind]]:
                said = normalise_answer(say(kind, answer, style))
                assert owner.setdefault(said, name) == name, f"{kind}: {said!r}"


def test_every_term_is_of_a_word_that_occurs() -> None:
    for name, style in STYLES.items():
        for group, terms in style.terms.items():
            assert set(terms) <= set(WORDS[group]), f"{name}: {group}"
        if style.language != "en":
            for group, words in WORDS.items():
                assert set(style.terms[group]) == set(words), f"{name}: {group}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"terms": {"sizes": {"big": "huge"}}}, r"terms: unknown \['sizes'\]"),
        ({"sentences": {"size": "{}"}}, r"sentences: unknown \['size'\]"),
        ({"sentences": {"count": "none"}}, "needs one of {} and {a}"),
        ({"sentences": {"count": "{} of {}"}}, "needs one of {} and {a}"),
        ({"terms": {"presence": {True: "aye", False: 3}}}, "expected str"),
        ({"length": 3}, "unknown key length"),
    ],
)
def test_wrong_styles_are_named(change: dict, message: str, tmp_path: Path) -> None:
    path = tmp_path / "styles.yaml"
    path.write_text(yaml.safe_dump({"odd": {"about": "a", "language": "en"} | change}))
    with pytest.raises(ConfigError, match=message) as caught:
        load_house_styles(path)
    assert f"{path}: odd" in str(caught.value)


def test_a_style_of_code() -> None:
    style = HouseStyle("b", "en", {"count": {"2": "a pair"}}, {"count": "{} of them"})
    assert say("count", "2", style) == "a pair of them"
    assert say("count", "3", style) == "3 of them"
