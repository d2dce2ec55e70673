"""The lab's commands of `vltune`."""

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from vltune.config import load_config
from vltune_lab.bench.commands import register as register_bench
from vltune_lab.discovery.commands import register as register_conditions
from vltune_lab.jobs.commands import register as register_jobs
from vltune_lab.pretrain.commands import register as register_pretrain
from vltune_lab.report.commands import register as register_report

console = Console()
scenes_app = typer.Typer(help="The embedded world.", no_args_is_help=True)

Overrides = Annotated[list[str], typer.Option("--set", help="key.sub=value, repeatable.")]


def register(app: typer.Typer) -> None:
    """Add the lab's commands; called through the entry point group `vltune.commands`."""
    app.add_typer(scenes_app, name="scenes")
    register_pretrain(app)
    app.command("demo")(demo)
    register_jobs(app)
    register_report(app)
    register_bench(app)
    register_conditions(app)


def demo(
    world: Annotated[Path, typer.Option(help="Folder of the world, made once.")] = Path(
        "build/world"
    ),
    out: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    name: Annotated[str, typer.Option(help="Name of the run.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the run.")] = 7,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default once
) -> None:
    """Train FedMPT over the sites of the embedded world, through FLARE's simulator."""
    from vltune_lab.demo import DemoOptions, run_demo

    run_demo(DemoOptions(world, out, name, seed, tuple(overrides)), console)


class Task(StrEnum):
    """What a world is for."""

    MULTILABEL = "multilabel"
    PREFERENCE = "preference"
    UNIFIED = "unified"


@scenes_app.command("make")
def scenes_make(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    config: Annotated[
        Path | None,
        typer.Option(help="World YAML; default: the task's own of the lab."),
    ] = None,
    task: Annotated[
        Task, typer.Option(help="Labels, preference pairs, or both tasks.")
    ] = Task.MULTILABEL,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default once
) -> None:
    """Write a world, per site and for tests: COCO labels, preference pairs, or VQA and captions."""
    from vltune_lab.scenes.make import make_world
    from vltune_lab.scenes.make_preference import make_preference_world
    from vltune_lab.scenes.make_unified import make_unified_world
    from vltune_lab.scenes.preference_world import PREFERENCE_WORLD, PreferenceWorld
    from vltune_lab.scenes.unified_world import UNIFIED_WORLD, UnifiedWorld
    from vltune_lab.scenes.world import DEMO_WORLD, WorldConfig

    began = time.perf_counter()
    with Progress(console=console) as progress:
        bar = progress.add_task("scenes")

        def show(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)

        if task is Task.PREFERENCE:
            pairs = load_config(PreferenceWorld, config or PREFERENCE_WORLD, overrides)
            made = make_preference_world(pairs, out, progress=show)
        elif task is Task.UNIFIED:
            both = load_config(UnifiedWorld, config or UNIFIED_WORLD, overrides)
            made = make_unified_world(both, out, progress=show)
        else:
            labels = load_config(WorldConfig, config or DEMO_WORLD, overrides)
            made = make_world(labels, out, progress=show)
    seconds = time.perf_counter() - began
    if made.was_there:
        text = f"{out} holds this world already: {made.num_images} images"
    else:
        text = f"{made.num_images} images in {out}, {made.num_images / seconds:.0f} images/s"
    console.print(text, highlight=False, markup=False, soft_wrap=True)
