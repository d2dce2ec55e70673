"""`vltune poc`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def register(app: typer.Typer) -> None:
    """Add the command to `vltune`."""
    app.command("poc")(poc)


def poc(  # noqa: PLR0913 - typer: an argument an option
    job: Annotated[str, typer.Option(help="fedmpt, fedvlm or fedumm.")] = "fedmpt",
    project: Annotated[
        Path | None, typer.Option(help="Sites, users and ports; default poc_workspace/project.yml.")
    ] = None,
    workspace: Annotated[Path, typer.Option(help="FLARE's folder; it is wiped.")] = Path(
        "poc_workspace/run"
    ),
    data: Annotated[
        Path | None, typer.Option(help="Folder of the sites' data; default build/poc/JOB.")
    ] = None,
    world: Annotated[
        Path | None, typer.Option(help="YAML of these data; default poc_workspace/worlds/JOB.yaml.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    name: Annotated[str, typer.Option(help="Name of the run.")] = "",
    config_only: Annotated[
        bool, typer.Option("--config-only", help="The job brings no code.")
    ] = False,
    overrides: Annotated[
        list[str], typer.Option("--set", help="key.sub=value for the job, repeatable.")
    ] = [],  # noqa: B006 - typer reads the default once
) -> None:
    """Run a job on a FLARE system of this machine, from certificates to report."""
    from vltune_lab.jobs.poc_run import PROJECT, PocOptions, run_poc

    options = PocOptions(
        *(job, project or PROJECT, workspace, data, world, out, name),
        overrides=tuple(overrides),
        config_only=config_only,
    )
    console = Console()
    folder = run_poc(options, console)
    console.print(f"{folder}/summary.json", f"{folder}/report.html", sep="\n", highlight=False)
