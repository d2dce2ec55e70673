"""House styles: the same answer in each site's own words, language, length and units.

A style is data (house_styles.yaml): a table of words and a sentence for each kind of question.
Saying is a pure function of kind, plain answer and style, and can be undone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from vltune.config import from_mapping, read_mapping
from vltune.text_metrics import normalise_answer
from vltune_lab.scenes.captions import article
from vltune_lab.scenes.questions import COLOURS, KINDS, MOST, POSITIONS

STYLES_FILE = Path(__file__).with_name("house_styles.yaml")
PLAIN = "plain"

GROUPS = {
    "presence": "presence",
    "count": "count",
    "colour": "colour",
    "position": "position",
    "relation": "object",
    "place": "place",
    "category": "object",
}
"""Kind of question -> group of words that its answers are from."""


@dataclass(frozen=True)
class HouseStyle:
    """How one site says it.

    Attributes:
        about: Who speaks like that.
        language: ISO 639-1.
        terms: Group -> plain answer -> the site's word; what is not listed stays as it is.
        sentences: Kind -> sentence with {} for the word or {a} for the word with its article.
    """

    about: str
    language: str
    terms: dict[str, dict[str, str]] = field(default_factory=dict)
    sentences: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, got, known in (
            ("terms", self.terms, set(GROUPS.values())),
            ("sentences", self.sentences, set(KINDS)),
        ):
            unknown = sorted(set(got) - known)
            if unknown:
                raise ValueError(f"{key}: unknown {unknown}; there are {sorted(known)}")
        for kind, sentence in self.sentences.items():
            if sentence.count("{}") + sentence.count("{a}") != 1:
                raise ValueError(f"sentences.{kind}: {sentence!r} needs one of {{}} and {{a}}")


@cache
def load_house_styles(path: Path = STYLES_FILE) -> Mapping[str, HouseStyle]:
    """Read all styles, by name.

    Raises:
        ConfigError: The file is wrong.
    """
    content = read_mapping(path)
    return {
        name: from_mapping(HouseStyle, entry, f"{path}: {name}") for name, entry in content.items()
    }


def vocabulary(classnames: tuple[str, ...], places: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Group -> every plain answer that can occur."""
    return {
        "presence": ("yes", "no"),
        "count": tuple(str(number) for number in range(MOST + 1)),
        "colour": COLOURS,
        "position": POSITIONS,
        "place": places,
        "object": classnames,
    }


def say(kind: str, answer: str, style: HouseStyle) -> str:
    """Put a plain answer into the words of a style.

    Args:
        kind: Kind of the question, one of `KINDS`.
        answer: The plain answer.
        style: Who answers.
    """
    word = style.terms.get(GROUPS[kind], {}).get(answer, answer)
    sentence = style.sentences.get(kind, "{}")
    return (
        sentence.replace("{a}", article(word))
        if "{a}" in sentence
        else sentence.replace("{}", word)
    )


def unsay(
    kind: str, text: str, style: HouseStyle, words: Mapping[str, tuple[str, ...]]
) -> str | None:
    """The plain answer that `say` turned into `text`; None where it is none of the style's.

    Args:
        kind: Kind of the question.
        text: What was said; case, spaces and punctuation at the end do not matter.
        style: Who said it.
        words: Of `vocabulary`.
    """
    said = normalise_answer(text)
    found = [a for a in words[GROUPS[kind]] if normalise_answer(say(kind, a, style)) == said]
    return found[0] if len(found) == 1 else None
