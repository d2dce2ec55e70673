"""The lab's commands of `vltune`."""

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from vltune.config import apply_overrides, from_mapping, load_config, read_mapping, to_mapping
from vltune_lab.bench.commands import register as register_bench
from vltune_lab.discovery.commands import register as register_conditions
from vltune_lab.report.commands import register as register_report

console = Console()
scenes_app = typer.Typer(help="The embedded world.", no_args_is_help=True)
pretrain_app = typer.Typer(help="Train the compact backbones.", no_args_is_help=True)

Overrides = Annotated[list[str], typer.Option("--set", help="key.sub=value, repeatable.")]


def register(app: typer.Typer) -> None:
    """Add the lab's commands; called through the entry point group `vltune.commands`."""
    app.add_typer(scenes_app, name="scenes")
    app.add_typer(pretrain_app, name="pretrain")
    app.command("demo")(demo)
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


@pretrain_app.command("clip")
def pretrain_clip(
    work: Annotated[Path, typer.Option(help="Checkpoints and log; a second call resumes.")] = Path(
        "build/pretrain-clip"
    ),
    out: Annotated[Path, typer.Option(help="Model folder with open_clip_config.json.")] = Path(
        "assets/clip-compact"
    ),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    workers: Annotated[int, typer.Option(help="Rendering processes.")] = 1,
    recipe: Annotated[Path | None, typer.Option(help="YAML with a PretrainConfig.")] = None,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default once
) -> None:
    """Train clip-compact on the pre-training styles, then write weights and card."""
    from vltune_lab.pretrain.card import publish
    from vltune_lab.pretrain.clip import pretrain
    from vltune_lab.pretrain.recipe import PretrainConfig

    mapping = apply_overrides(read_mapping(recipe) if recipe else {}, overrides)
    config = from_mapping(PretrainConfig, mapping, str(recipe or "--set"))
    state = pretrain(config, model_folder=out, work=work, device=device, workers=workers)
    console.print_json(json.dumps(publish(state, config, out, device)))


@pretrain_app.command("florence2")
def pretrain_florence2(
    work: Annotated[Path, typer.Option(help="Checkpoints and log; a second call resumes.")] = Path(
        "build/pretrain-florence2"
    ),
    out: Annotated[Path, typer.Option(help="Model folder with config.json and tokenizer.")] = Path(
        "assets/florence2-compact"
    ),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    workers: Annotated[int, typer.Option(help="Rendering processes.")] = 1,
    recipe: Annotated[Path | None, typer.Option(help="YAML with a Florence2Recipe.")] = None,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default once
) -> None:
    """Train florence2-compact on the pre-training styles, then write weights and card."""
    from vltune_lab.pretrain.florence2 import pretrain
    from vltune_lab.pretrain.florence2_card import publish
    from vltune_lab.pretrain.florence2_recipe import Florence2Recipe

    mapping = apply_overrides(read_mapping(recipe) if recipe else {}, overrides)
    config = from_mapping(Florence2Recipe, mapping, str(recipe or "--set"))
    state = pretrain(config, model_folder=out, work=work, device=device, workers=workers)
    console.print_json(json.dumps(publish(state, out, device)))


@pretrain_app.command("judge")
def pretrain_judge(
    work: Annotated[Path, typer.Option(help="Checkpoints and log; a second call resumes.")] = Path(
        "build/pretrain-judge"
    ),
    out: Annotated[Path, typer.Option(help="Model folder to write.")] = Path(
        "assets/judge-compact"
    ),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    workers: Annotated[int, typer.Option(help="Rendering processes.")] = 1,
    recipe: Annotated[Path | None, typer.Option(help="YAML with a JudgeRecipe.")] = None,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default once
) -> None:
    """Train the detector that judges generated pictures, then write weights and card."""
    from vltune_lab.pretrain.judge import pretrain
    from vltune_lab.pretrain.judge_card import publish
    from vltune_lab.pretrain.judge_recipe import JudgeRecipe

    mapping = apply_overrides(read_mapping(recipe) if recipe else {}, overrides)
    config = from_mapping(JudgeRecipe, mapping, str(recipe or "--set"))
    state = pretrain(config, work=work, device=device, workers=workers)
    console.print_json(json.dumps(publish(state, out, device)))


class JanusStage(StrEnum):
    """What janus-compact learns one after the other; see `vltune_lab.pretrain.janus`."""

    TOKENIZER = "tokenizer"
    DECODER = "decoder"
    VISION = "vision"
    LANGUAGE = "language"
    PUBLISH = "publish"


@pretrain_app.command("janus")
def pretrain_janus(
    stage: Annotated[JanusStage, typer.Option(help="One stage, or publish what is there.")],
    work: Annotated[Path, typer.Option(help="Checkpoints and log; a second call resumes.")] = Path(
        "build/pretrain-janus"
    ),
    out: Annotated[Path, typer.Option(help="Model folder with config.json and tokenizer.")] = Path(
        "assets/janus-compact"
    ),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    workers: Annotated[int, typer.Option(help="Rendering processes.")] = 1,
    recipe: Annotated[Path | None, typer.Option(help="YAML with the stage's recipe.")] = None,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default once
) -> None:
    """Train a stage of janus-compact on the pre-training styles, or write weights and card."""
    from vltune_lab.pretrain.janus_stages import publish_stages, run_stage

    mapping = apply_overrides(read_mapping(recipe) if recipe else {}, overrides)
    if stage is JanusStage.PUBLISH:
        console.print_json(json.dumps(publish_stages(mapping, out=out, work=work, device=device)))
    else:
        run_stage(stage.value, mapping, out=out, work=work, device=device, workers=workers)


@pretrain_app.command("blip3o")
def pretrain_blip3o(
    work: Annotated[Path, typer.Option(help="Checkpoints and logs; a second call resumes.")] = Path(
        "build/pretrain-blip3o"
    ),
    out: Annotated[Path, typer.Option(help="Model folder to write.")] = Path(
        "assets/blip3o-compact"
    ),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    workers: Annotated[int, typer.Option(help="Rendering processes.")] = 1,
    until: Annotated[
        str, typer.Option(help="Last stage: decoder, understanding or drawing.")
    ] = "drawing",
    recipe: Annotated[Path | None, typer.Option(help="YAML with a Blip3oRecipe.")] = None,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default once
) -> None:
    """Train blip3o-compact on the pre-training styles; after the last stage write it with card."""
    from vltune_lab.pretrain.blip3o import STAGES, pretrain
    from vltune_lab.pretrain.blip3o_card import publish
    from vltune_lab.pretrain.blip3o_recipe import Blip3oRecipe

    if until not in STAGES:
        raise typer.BadParameter(f"expected one of {', '.join(STAGES)}, got {until!r}")
    begun = read_mapping(recipe) if recipe else to_mapping(Blip3oRecipe())
    mapping = apply_overrides(begun, overrides)
    config = from_mapping(Blip3oRecipe, mapping, str(recipe or "--set"))
    stages = STAGES[: STAGES.index(until) + 1]
    backbone, states = pretrain(config, work=work, device=device, workers=workers, stages=stages)
    if until == STAGES[-1]:
        console.print_json(json.dumps(publish(backbone, states, out, device)))
