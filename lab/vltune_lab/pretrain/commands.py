"""`vltune pretrain ...`."""

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from vltune.config import apply_overrides, from_mapping, read_mapping, to_mapping

console = Console()
pretrain_app = typer.Typer(help="Train the compact backbones.", no_args_is_help=True)

Work = Annotated[Path, typer.Option(help="Checkpoints and log; a second call resumes.")]
Begun = Annotated[Path, typer.Option(help="Model folder with its configuration and tokenizer.")]
Out = Annotated[Path, typer.Option(help="Model folder to write.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Workers = Annotated[int, typer.Option(help="Rendering processes.")]
Recipe = Annotated[Path | None, typer.Option(help="YAML with what differs from the recipe.")]
Overrides = Annotated[list[str], typer.Option("--set", help="key.sub=value, repeatable.")]
RecipeClass = TypeVar("RecipeClass")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(pretrain_app, name="pretrain")


@pretrain_app.command("clip")
def pretrain_clip(
    work: Work = Path("build/pretrain-clip"),
    out: Begun = Path("assets/clip-compact"),
    device: Device = "cpu",
    workers: Workers = 1,
    recipe: Recipe = None,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default once
) -> None:
    """Train clip-compact on the pre-training styles, then write weights and card."""
    from vltune_lab.pretrain.card import publish
    from vltune_lab.pretrain.clip import pretrain
    from vltune_lab.pretrain.recipe import PretrainConfig

    config = _recipe(PretrainConfig, recipe, overrides)
    state = pretrain(config, model_folder=out, work=work, device=device, workers=workers)
    _show(publish(state, config, out, device))


@pretrain_app.command("florence2")
def pretrain_florence2(
    work: Work = Path("build/pretrain-florence2"),
    out: Begun = Path("assets/florence2-compact"),
    device: Device = "cpu",
    workers: Workers = 1,
    recipe: Recipe = None,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default once
) -> None:
    """Train florence2-compact on the pre-training styles, then write weights and card."""
    from vltune_lab.pretrain.florence2 import pretrain
    from vltune_lab.pretrain.florence2_card import publish
    from vltune_lab.pretrain.florence2_recipe import Florence2Recipe

    config = _recipe(Florence2Recipe, recipe, overrides)
    state = pretrain(config, model_folder=out, work=work, device=device, workers=workers)
    _show(publish(state, out, device))


@pretrain_app.command("judge")
def pretrain_judge(
    work: Work = Path("build/pretrain-judge"),
    out: Out = Path("assets/judge-compact"),
    device: Device = "cpu",
    workers: Workers = 1,
    recipe: Recipe = None,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default once
) -> None:
    """Train the detector that judges generated pictures, then write weights and card."""
    from vltune_lab.pretrain.judge import pretrain
    from vltune_lab.pretrain.judge_card import publish
    from vltune_lab.pretrain.judge_recipe import JudgeRecipe

    config = _recipe(JudgeRecipe, recipe, overrides)
    state = pretrain(config, work=work, device=device, workers=workers)
    _show(publish(state, out, device))


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
    work: Work = Path("build/pretrain-janus"),
    out: Begun = Path("assets/janus-compact"),
    device: Device = "cpu",
    workers: Workers = 1,
    recipe: Recipe = None,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default once
) -> None:
    """Train a stage of janus-compact on the pre-training styles, or write weights and card."""
    from vltune_lab.pretrain.janus_stages import publish_stages, run_stage

    mapping = apply_overrides(read_mapping(recipe) if recipe else {}, overrides)
    if stage is JanusStage.PUBLISH:
        _show(publish_stages(mapping, out=out, work=work, device=device))
    else:
        run_stage(stage.value, mapping, out=out, work=work, device=device, workers=workers)


@pretrain_app.command("blip3o")
def pretrain_blip3o(
    work: Work = Path("build/pretrain-blip3o"),
    out: Out = Path("assets/blip3o-compact"),
    device: Device = "cpu",
    workers: Workers = 1,
    until: Annotated[
        str, typer.Option(help="Last stage: decoder, understanding or drawing.")
    ] = "drawing",
    recipe: Recipe = None,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default once
) -> None:
    """Train blip3o-compact on the pre-training styles; after the last stage write it with card."""
    from vltune_lab.pretrain.blip3o import STAGES, pretrain
    from vltune_lab.pretrain.blip3o_card import publish
    from vltune_lab.pretrain.blip3o_recipe import Blip3oRecipe

    if until not in STAGES:
        raise typer.BadParameter(f"expected one of {', '.join(STAGES)}, got {until!r}")
    config = _recipe(Blip3oRecipe, recipe, overrides)
    stages = STAGES[: STAGES.index(until) + 1]
    backbone, states = pretrain(config, work=work, device=device, workers=workers, stages=stages)
    if until == STAGES[-1]:
        _show(publish(backbone, states, out, device))


def _recipe(kind: type[RecipeClass], recipe: Path | None, overrides: Sequence[str]) -> RecipeClass:
    """A recipe from its file, or as it stands in the code, and what --set changes."""
    begun = read_mapping(recipe) if recipe else to_mapping(kind())
    return from_mapping(kind, apply_overrides(begun, overrides), str(recipe or "--set"))


def _show(card: Mapping[str, Any]) -> None:
    console.print_json(json.dumps(card))
