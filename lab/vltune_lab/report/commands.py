"""`vltune report`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def register(app: typer.Typer) -> None:
    """Add the command to `vltune`."""
    app.command("report")(report)


def report(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN_FOLDER", help="Folder of a run, runs/NAME.")
    ],
) -> None:
    """Build report.html anew from the other files of a run folder."""
    from vltune_lab.report.html import build_report

    Console().print(str(build_report(run_folder)), highlight=False, soft_wrap=True)
