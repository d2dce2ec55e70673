"""Prompts that say what an image must show: GenEval's JSON lines, read and checked.

One object a line, in the form of GenEval's own `evaluation_metadata.jsonl` (Ghosh et al. 2023)::

    {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}], "prompt": "..."}

`include` entries may have a `color` and a `position`: a pair of a relation and the index of an
earlier entry of the same list. `exclude` says how many of a class are too many.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
MOST_OBJECTS = 16
"""Detections of a class that count at all (Ghosh et al. 2023, released evaluation)."""


class PromptError(ValueError):
    """A file of prompts is wrong; the message names the file, the line, the value and the cure."""


@dataclass(frozen=True)
class Included:
    """What must be there.

    Attributes:
        classname: Of the judge's classes.
        count: At least so many.
        color: Each of them, one of `COLORS`; None: any.
        position: A relation, and the index of the earlier entry that it is relative to.
    """

    classname: str
    count: int = 1
    color: str | None = None
    position: tuple[str, int] | None = None


@dataclass(frozen=True)
class Excluded:
    """What must not be there: `count` or more of a class."""

    classname: str
    count: int = 1


@dataclass(frozen=True)
class GenevalPrompt:
    """One prompt.

    Attributes:
        tag: Family, one of `TAGS`.
        prompt: The text that the model gets.
        include: What the image must show, at least one entry.
        exclude: What it must not show.
    """

    tag: str
    prompt: str
    include: tuple[Included, ...]
    exclude: tuple[Excluded, ...] = ()

    @property
    def classnames(self) -> frozenset[str]:
        """Classes that a judge must know."""
        wanted = {item.classname for item in self.include}
        return frozenset(wanted | {item.classname for item in self.exclude})


def read_prompts(path: Path) -> tuple[GenevalPrompt, ...]:
    """Read a `.jsonl` file of prompts, in order; blank lines are skipped.

    Raises:
        PromptError: No such file, no UTF-8 JSON, an unknown or missing key, a wrong value, or no
            prompt.
    """
    prompts = []
    for number, line in _lines(path):
        where = f"{path}: line {number}"
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PromptError(
                f"{where}: not JSON ({type(error).__name__}). Put one object on a line."
            ) from error
        prompts.append(prompt_of(content, where))
    if not prompts:
        raise PromptError(f"{path}: has no prompts. Give a file with prompts, or leave it out.")
    return tuple(prompts)


def prompt_of(content: Any, where: str) -> GenevalPrompt:
    """Check one object.

    Args:
        content: As JSON gives it.
        where: File and line, for messages.

    Raises:
        PromptError: It is not a prompt.
    """
    _check_keys(content, {"tag", "include", "prompt"}, {"exclude"}, where)
    tag, text = content["tag"], content["prompt"]
    if tag not in TAGS:
        raise PromptError(f"{where}: tag {_shown(tag)}; expected one of {', '.join(TAGS)}.")
    if not isinstance(text, str) or not text.strip():
        raise PromptError(f"{where}: prompt {_shown(text)} is no text. Say what to draw.")
    entries = _list(content["include"], "include", where)
    if not entries:
        raise PromptError(f"{where}: 'include' is empty. Say what the image must show.")
    include = tuple(
        _included(entry, index, f"{where}: include[{index}]") for index, entry in enumerate(entries)
    )
    exclude = []
    for index, entry in enumerate(_list(content.get("exclude", []), "exclude", where)):
        inner = f"{where}: exclude[{index}]"
        _check_keys(entry, {"class", "count"}, set(), inner)
        exclude.append(Excluded(_classname(entry, inner), _count(entry, inner)))
    return GenevalPrompt(tag, text.strip(), include, tuple(exclude))


def as_mapping(prompt: GenevalPrompt) -> dict[str, Any]:
    """The prompt as an object of the file: `prompt_of` reads it back unchanged."""
    include = []
    for item in prompt.include:
        entry: dict[str, Any] = {"class": item.classname, "count": item.count}
        if item.color is not None:
            entry["color"] = item.color
        if item.position is not None:
            entry["position"] = list(item.position)
        include.append(entry)
    content: dict[str, Any] = {"tag": prompt.tag, "include": include}
    if prompt.exclude:
        content["exclude"] = [
            {"class": item.classname, "count": item.count} for item in prompt.exclude
        ]
    return content | {"prompt": prompt.prompt}


def as_lines(prompts: Iterable[GenevalPrompt]) -> str:
    """The content of a file."""
    return "".join(json.dumps(as_mapping(prompt), ensure_ascii=False) + "\n" for prompt in prompts)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    if not path.is_file():
        raise PromptError(f"{path}: no such file of prompts. Correct the path.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path}: cannot be read as UTF-8 text. Save it as UTF-8.") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line


def _included(entry: Any, index: int, where: str) -> Included:
    _check_keys(entry, {"class", "count"}, {"color", "position"}, where)
    color = entry.get("color")
    if color is not None and color not in COLORS:
        raise PromptError(f"{where}: color {_shown(color)}; expected one of {', '.join(COLORS)}.")
    position = entry.get("position")
    return Included(
        _classname(entry, where),
        _count(entry, where),
        color,
        None if position is None else _position(position, index, where),
    )


def _position(value: Any, index: int, where: str) -> tuple[str, int]:
    is_pair = isinstance(value, list) and len(value) == 2
    if not is_pair or value[0] not in RELATIONS or type(value[1]) is not int:
        raise PromptError(
            f"{where}: position {_shown(value)}; expected a pair such as ['left of', 0], the "
            f"relation one of {', '.join(RELATIONS)}."
        )
    if not 0 <= value[1] < index:
        raise PromptError(
            f"{where}: position {_shown(value)} points to entry {value[1]}; only an earlier one, "
            f"below {index}, can be meant. Put what it is relative to first."
        )
    return value[0], value[1]


def _classname(entry: Mapping[str, Any], where: str) -> str:
    name = entry["class"]
    if not isinstance(name, str) or not name.strip():
        raise PromptError(f"{where}: class {_shown(name)} is no name. Give a class of the judge.")
    return name.strip()


def _count(entry: Mapping[str, Any], where: str) -> int:
    count = entry["count"]
    if type(count) is not int or not 1 <= count <= MOST_OBJECTS:
        raise PromptError(f"{where}: count {_shown(count)}; expected 1 to {MOST_OBJECTS}.")
    return count


def _list(value: Any, key: str, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise PromptError(f"{where}: {key!r} is {type(value).__name__}; expected a list.")
    return value


def _check_keys(content: Any, required: set[str], optional: set[str], where: str) -> None:
    if not isinstance(content, dict):
        raise PromptError(f"{where}: expected an object, got {type(content).__name__}.")
    missing, unknown = sorted(required - set(content)), sorted(set(content) - required - optional)
    if missing:
        raise PromptError(f"{where}: key {missing[0]!r} is missing. Add it.")
    if unknown:
        known = ", ".join(sorted(required | optional))
        raise PromptError(f"{where}: {len(unknown)} unknown keys; known: {known}. Remove them.")


def _shown(value: Any) -> str:
    """A number as it is; of anything else its type, for messages may reach the server."""
    is_number = value is None or isinstance(value, int | float)
    return repr(value) if is_number else f"of type {type(value).__name__}"
