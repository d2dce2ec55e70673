"""The five conditions that the FedMPT paper publishes, written for a class list.

    python -m vltune_lab.discovery.published                      # rewrite the shipped caches
    python -m vltune_lab.discovery.published --name mine --classes names.txt

The paper (arXiv 2605.28347) finds its conditions with a language model; nothing of the kind runs
here, and the caches say so. Class lists live in the caches themselves; only `embedded` follows the
sprites.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vltune.conditions import ConditionError, condition_cache_mapping, load_conditions
from vltune.files import write_json_atomic

ROOT = Path(__file__).parents[3]
CACHES = ROOT / "condition_cache"
SPRITES = ROOT / "assets" / "sprites" / "manifest.json"
EMBEDDED = "embedded"

PAPER_CONDITIONS = (
    ("colour", "The hues of the objects and of what surrounds them."),
    ("background", "What lies behind the objects: sky, wall, grass, water."),
    ("scene type", "The kind of place that is shown: street, kitchen, field, beach."),
    ("spatial layout", "Where objects stand to each other: apart, overlapping, near, far."),
    ("pose", "How an object is turned and what posture it takes."),
)
MADE_BY = {
    "method": "taken from the paper",
    "date": "2026-11-21",
    "source": "FedMPT, arXiv 2605.28347: the five conditions that its authors publish",
    "note": (
        "Only the names come from the paper; the glosses are ours and enter no prompt. No language "
        "model was asked about this class list."
    ),
}


def published_cache(name: str, classnames: list[str]) -> dict[str, Any]:
    """Return the content of a cache with the paper's conditions.

    Raises:
        ConditionError: A class name is empty, repeated, too long or holds control characters.
    """
    return condition_cache_mapping(name, classnames, PAPER_CONDITIONS, MADE_BY)


def rewrite_shipped(caches: Path = CACHES, sprites: Path = SPRITES) -> list[Path]:
    """Rewrite the caches in `caches` whose conditions came from the paper; return their paths.

    Raises:
        ConditionError: A cache is damaged, or the sprite manifest has no class list.
    """
    written = []
    for path in sorted(caches.glob("*.json")):
        made_by = json.loads(path.read_text(encoding="utf-8")).get("made_by", {})
        if made_by.get("method") == MADE_BY["method"] and path.stem != EMBEDDED:
            classnames = list(load_conditions(path).classnames)
            write_json_atomic(path, published_cache(path.stem, classnames))
            written.append(path)
    embedded = caches / f"{EMBEDDED}.json"
    write_json_atomic(embedded, published_cache(EMBEDDED, _sprite_classes(sprites)))
    return [*written, embedded]


def _sprite_classes(manifest: Path) -> list[str]:
    try:
        classes = json.loads(manifest.read_text(encoding="utf-8"))["classes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConditionError(
            f"{manifest}: has no readable list 'classes' ({error!r}). Restore it with git checkout."
        ) from error
    return list(classes)


def main(
    name: Annotated[str, typer.Option(help="Name of a new class list.")] = "",
    classes: Annotated[Path | None, typer.Option(help="Text file, one class name a line.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the caches.")] = CACHES,
) -> None:
    """Rewrite the shipped condition caches, or write one for a new class list."""
    if bool(name) != (classes is not None):
        raise typer.BadParameter("--name and --classes belong together")
    try:
        if classes is None:
            written = rewrite_shipped(out)
        else:
            lines = classes.read_text(encoding="utf-8").splitlines()
            content = published_cache(name, [line.strip() for line in lines if line.strip()])
            written = [out / f"{name}.json"]
            write_json_atomic(written[0], content)
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    for path in written:
        typer.echo(path)


if __name__ == "__main__":
    typer.run(main)
