"""A class list as a file: text with one name a line, a JSON list, or a condition cache."""

import json
from pathlib import Path

from vltune.conditions import ConditionError, condition_cache_mapping, conditions_from_mapping

FEWEST = 2


def read_class_list(path: Path) -> tuple[str, ...]:
    r"""Read class names in their order and check them as a condition cache does.

    Text is cut at "\n" only: a name that holds another line break is refused, not cut in two. Empty
    lines are left out.

    Args:
        path: `.json` holds a list of names or an object with `classnames`; all else is text, UTF-8.

    Raises:
        ConditionError: The file is missing or unreadable, has fewer than two names, or a name that
            a cache refuses: empty, repeated, too long, with a line break or invisible character.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = _from_json(text, path) if path.suffix.lower() == ".json" else _from_lines(text)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ConditionError):
            raise
        raise ConditionError(
            f"{path}: no readable class list ({error}). Give a text file in UTF-8, one name a line."
        ) from error
    if len(names) < FEWEST:
        raise ConditionError(
            f"{path}: {len(names)} class names; conditions are found in combinations of classes, "
            f"so give {FEWEST} or more, one a line."
        )
    try:
        made_by = {"method": "check", "date": "check"}
        checked = condition_cache_mapping("classes", names, [("check", "check")], made_by)
    except ConditionError as error:
        raise ConditionError(f"{path}: {str(error).partition(': ')[2]}") from error
    return conditions_from_mapping(checked, None, str(path)).classnames


def _from_lines(text: str) -> list[str]:
    lines = [line.strip(" \t\r") for line in text.split("\n")]
    return [line for line in lines if line]


def _from_json(text: str, path: Path) -> list[str]:
    content = json.loads(text)
    names = content.get("classnames") if isinstance(content, dict) else content
    if not isinstance(names, list):
        raise ConditionError(
            f"{path}: expected a JSON list of names or an object with 'classnames', "
            f"got {content!r:.80}."
        )
    for index, name in enumerate(names):
        # Lone surrogates, which JSON can spell, have no bytes in UTF-8.
        if not isinstance(name, str) or name != name.encode("utf-8", "replace").decode():
            raise ConditionError(
                f"{path}: classnames[{index}]: {name!r:.80} is no text. Give it words."
            )
    return names
