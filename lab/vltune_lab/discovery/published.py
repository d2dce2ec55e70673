"""Rewrites the shipped caches whose conditions came from the paper.

    python -m vltune_lab.discovery.published

Class lists live in the caches themselves, and so does `made_by.class_list`, the source of a list;
only `embedded` follows the sprites. For your own list: `vltune conditions build --llm none`.
"""

import json
from pathlib import Path
from typing import Any

import typer

from vltune.conditions import (
    ConditionError,
    condition_cache_mapping,
    load_conditions,
    read_condition_cache,
)
from vltune.files import write_json_atomic
from vltune_lab.discovery.from_paper import METHOD, NOTE, PAPER_CONDITIONS, SOURCE

ROOT = Path(__file__).parents[3]
CACHES = ROOT / "condition_cache"
SPRITES = ROOT / "assets" / "sprites" / "manifest.json"
EMBEDDED = "embedded"

MADE_BY = {
    "method": METHOD,
    "date": "2026-11-21",
    "source": f"{SOURCE}: the five conditions that its authors publish",
    "note": NOTE,
}
CLASS_LIST = "class_list"


def rewrite_shipped(caches: Path = CACHES, sprites: Path = SPRITES) -> list[Path]:
    """Rewrite the caches in `caches` whose conditions came from the paper; return their paths.

    Caches that were edited by hand are left alone.

    Raises:
        ConditionError: A cache is damaged, or the sprite manifest has no class list.
    """
    written = []
    for path in sorted(caches.glob("*.json")):
        made_by = read_condition_cache(path).get("made_by")
        made_by = made_by if isinstance(made_by, dict) else {}
        is_ours = made_by.get("method") == METHOD and "edits" not in made_by
        if is_ours and path.stem != EMBEDDED:
            source = {key: made_by[key] for key in (CLASS_LIST,) if key in made_by}
            classnames = list(load_conditions(path).classnames)
            write_json_atomic(path, _content(path.stem, classnames, source))
            written.append(path)
    embedded = caches / f"{EMBEDDED}.json"
    write_json_atomic(embedded, _content(EMBEDDED, _sprite_classes(sprites), {}))
    return [*written, embedded]


def _content(name: str, classnames: list[str], source: dict[str, str]) -> dict[str, Any]:
    return condition_cache_mapping(name, classnames, PAPER_CONDITIONS, MADE_BY | source)


def _sprite_classes(manifest: Path) -> list[str]:
    try:
        classes = json.loads(manifest.read_text(encoding="utf-8"))["classes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConditionError(
            f"{manifest}: has no readable list 'classes' ({error!r}). Restore it with git checkout."
        ) from error
    return list(classes)


def main() -> None:
    """Rewrite the shipped condition caches."""
    try:
        written = rewrite_shipped()
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    for path in written:
        typer.echo(path)


if __name__ == "__main__":
    typer.run(main)
