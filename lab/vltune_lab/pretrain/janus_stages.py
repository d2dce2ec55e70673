"""The stages of `vltune pretrain janus` by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vltune.config import from_mapping
from vltune_lab.pretrain.janus import (
    JanusRun,
    build_backbone,
    start,
    take_stage,
    take_words,
    train_language,
)
from vltune_lab.pretrain.janus_recipe import (
    DecoderRecipe,
    JanusRecipe,
    TokenizerRecipe,
    VisionRecipe,
)
from vltune_lab.pretrain.janus_vision import train_vision
from vltune_lab.pretrain.pixel_decoder import check_codes, train_decoder
from vltune_lab.pretrain.pixel_tokenizer import train_tokenizer
from vltune_lab.pretrain.run_state import RunState
from vltune_lab.scenes.library import PACKAGED_ASSETS

TEACHER = PACKAGED_ASSETS / "clip-compact"
WORDS = PACKAGED_ASSETS / "florence2-compact"


def run_stage(
    stage: str,
    mapping: Mapping[str, Any],
    *,
    out: Path,
    work: Path,
    device: str = "cpu",
    workers: int = 1,
) -> RunState:
    """Train one stage to its end.

    Args:
        stage: `tokenizer`, `decoder`, `vision` or `language`.
        mapping: What differs from the stage's recipe.
        out: Model folder; holds config.json, vltune_janus.json, preprocessing and tokenizer.
        work: Folder of all stages.
        device: cpu or cuda.
        workers: Rendering processes.

    Raises:
        ConfigError: A value of the recipe is unknown, or a stage is missing before this one.
    """
    options = {"device": device, "workers": workers}
    if stage == "tokenizer":
        recipe = from_mapping(TokenizerRecipe, mapping, "--set")
        config = build_backbone(out, recipe.seed)._janus.config.vq_config
        return train_tokenizer(recipe, config, work / stage, **options)
    if stage == "decoder":
        decoder = from_mapping(DecoderRecipe, mapping, "--set")
        vq = build_backbone(out, decoder.seed)._janus.model.vqmodel
        take_stage(work / "tokenizer", {"vq": vq})
        return train_decoder(decoder, vq, work / stage, **options)
    if stage == "vision":
        vision = from_mapping(VisionRecipe, mapping, "--set")
        backbone = build_backbone(out, vision.seed)
        return train_vision(vision, backbone, TEACHER, work / stage, **options)
    language = from_mapping(JanusRecipe, mapping, "--set")
    backbone = build_backbone(out, language.seed)
    take_words(backbone, WORDS)
    return train_language(language, backbone, work, **options)


def load_run(mapping: Mapping[str, Any], *, out: Path, work: Path, device: str) -> JanusRun:
    """The last stage as its checkpoint has it, without training, and the decoder trained on.

    Raises:
        ConfigError: The decoder is of another tokenizer than the last stage began with.
    """
    recipe = from_mapping(JanusRecipe, mapping, "--set")
    run = start(recipe, build_backbone(out, recipe.seed), work, device)
    decoder = work / "decoder" / "checkpoint.pt"
    if decoder.is_file():
        vq: Any = run.model.model.vqmodel
        check_codes(vq, decoder)
        take_stage(decoder.parent, {"vq": vq})
    return run


def publish_stages(
    mapping: Mapping[str, Any], *, out: Path, work: Path, device: str
) -> dict[str, Any]:
    """Write weights and card of the last stage's checkpoint; returns the card."""
    from vltune_lab.pretrain.janus_card import publish

    return publish(load_run(mapping, out=out, work=work, device=device), out, work, device)
