"""`vltune conditions check | show | edit`: what a cache holds, and a person's review of it."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vltune.conditions import ConditionSet, conditions_from_mapping, read_condition_cache
from vltune_lab.discovery.answers import one_line
from vltune_lab.discovery.class_list import read_class_list
from vltune_lab.discovery.origins import describe_method, list_origins
from vltune_lab.discovery.review import describe_edit, edit_cache, write_review

Cache = Annotated[Path, typer.Argument(metavar="PATH", help="A condition cache.")]


def add_review_commands(app: typer.Typer) -> None:
    """Add the commands to `vltune conditions`."""
    for command in (check, show, edit):
        app.command()(command)


def check(
    path: Cache,
    classes: Annotated[
        Path | None, typer.Option(help="Class list that the cache must have been made for.")
    ] = None,
) -> None:
    """Check a cache: form, hashes and, if given, the class list."""
    content = read_condition_cache(path)
    names = read_class_list(classes) if classes else None
    found = conditions_from_mapping(content, names, str(path))
    say(Console(), f"{path}: good. {_summary(found, content)}")


def show(
    path: Cache,
    table: Annotated[
        Path | None, typer.Option(help="Write them and all candidates to a new .csv, to edit.")
    ] = None,
) -> None:
    """Show the conditions of a cache, and where they come from."""
    content = read_condition_cache(path)
    found = conditions_from_mapping(content, None, str(path))
    console = Console()
    console.print(table_of(content))
    say(console, _summary(found, content))
    if table:
        write_review(content, table)
        say(console, f"{table}: edit it, then vltune conditions edit {path} --table {table}")


def edit(
    path: Cache,
    table: Annotated[Path, typer.Option(help="What show --table wrote and you changed.")],
    out: Annotated[Path | None, typer.Option(help="Another cache to write, NAME.json.")] = None,
    by: Annotated[str, typer.Option(help="Who edited, for the record.")] = "",
) -> None:
    """Apply an edited table to a cache; what was changed is recorded in it."""
    target = out or path
    entry = edit_cache(path, table, target, by)
    say(Console(), f"{target}: {describe_edit(entry)}")


def table_of(content: dict[str, Any]) -> Table:
    """Return the conditions of a checked cache as a table: condition, gloss, score, origin."""
    table = Table("condition", "gloss", "score", "origin")
    for row in list_origins(content):
        if row.keep:
            shown = "-" if row.score is None else f"{row.score:.2f}"
            # As text: names may hold brackets, which rich would take for markup.
            table.add_row(*map(Text, (row.name, row.gloss, shown, row.origin)))
    return table


def _summary(found: ConditionSet, content: dict[str, Any]) -> str:
    made_by = content["made_by"]
    return (
        f"{len(found.names)} conditions, {len(found.classnames)} classes "
        f"({found.class_list_hash[:12]}), "
        f"made by {describe_method(made_by)}, {one_line(made_by['date'])}"
    )


def say(console: Console, text: str) -> None:
    """Print a line as it is: no markup, no line breaks."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)
