import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

sys.path.append(str(Path(__file__).parents[2] / "vltune"))

from vltune.backbones.blip3o import load_blip3o
from vltune.backbones.blip3o_config import DecoderSettings, FlowSettings
from vltune.backbones.checkpoint import BackboneConfig
from vltune.config import ConfigError, from_mapping, to_mapping
from vltune_lab.commands import register
from vltune_lab.pretrain import blip3o
from vltune_lab.pretrain.blip3o import STAGES, begin, pretrain
from vltune_lab.pretrain.blip3o_card import publish
from vltune_lab.pretrain.blip3o_losses import decoder_loss
from vltune_lab.pretrain.blip3o_recipe import COMPACT, Blip3oRecipe, StageRecipe

torch.set_num_threads(1)

SMALL = dataclasses.replace(
    COMPACT,
    language={
        **COMPACT.language, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2,
    },
    num_queries=2,
    flow=FlowSettings(width=16, depth=1, num_heads=2, ffn_width=24, modulation_width=16),
    decoder=DecoderSettings(channels=(16, 8, 8), shuffle=2),
)  # fmt: skip


def stage(steps: int) -> StageRecipe:
    return StageRecipe(steps, 4, 1e-2, warmup_steps=1)


def recipe(steps: int = 2, **changes: Any) -> Blip3oRecipe:
    stages = {name: stage(steps) for name in STAGES}
    values: dict[str, Any] = {"statistics_images": 8, "questions": 1, "captions": 2}
    return Blip3oRecipe(**{**stages, **values, "checkpoint_every": 1, **changes})


def test_the_tower_is_clip_compacts_and_stays() -> None:
    """The trunk's patches, before the projection that the joint space needs."""
    backbone = begin(SMALL, 0, "cpu")
    clip = blip3o.load_clip(BackboneConfig("clip-compact", str(blip3o.CLIP)), bfloat16=False)
    trunk: Any = clip.model.visual
    pixels = torch.rand(2, 3, 64, 64)
    tokens = backbone.encode_images(pixels)
    assert tokens.shape == (2, 64, 128)
    joint = torch.nn.functional.normalize(trunk.head(tokens), dim=-1)
    torch.testing.assert_close(joint, clip.encode_images(pixels).patch_features)


def test_decoder_loss_by_hand() -> None:
    """A decoder that always says 0.5 on a black image: 0.5 + 0.25, and 6.02 dB."""
    backbone = begin(SMALL, 0, "cpu")
    last = backbone.model.feature_decoder.layers[-2]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    terms = decoder_loss(backbone, torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    assert terms["loss"].item() == pytest.approx(0.75)
    assert terms["decibels"].item() == pytest.approx(6.0206, abs=1e-3)


@pytest.mark.slow
def test_stages_resume_and_train_only_their_parts(tmp_path: Path) -> None:
    whole, states = pretrain(recipe(), work=tmp_path / "whole", workers=0, settings=SMALL)
    assert [state.step for state in states.values()] == [2, 2, 2]
    again = tmp_path / "parts"
    pretrain(recipe(), work=again, workers=0, settings=SMALL, stages=STAGES[:1])
    begun = begin(SMALL, 2026, "cpu").model.state_dict()
    first, _ = pretrain(recipe(), work=again, workers=0, settings=SMALL, stages=STAGES[:1])
    changed = {
        name.partition(".")[0]
        for name, value in first.model.state_dict().items()
        if not torch.equal(value, begun[name])
    }
    assert changed == {"feature_decoder", "feature_mean", "feature_std"}
    resumed, _ = pretrain(recipe(), work=again, workers=0, settings=SMALL)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
        if name.startswith("vision_tower."):
            assert torch.equal(value, begun[name]), name
    assert not any(p.requires_grad for p in resumed.model.parameters())


@pytest.mark.slow
def test_a_cut_stage_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut after the first of two steps of drawing; the second is the same as undisturbed."""
    whole, _ = pretrain(recipe(), work=tmp_path / "whole", workers=0, settings=SMALL)
    real = blip3o.drawing_loss
    calls: list[int] = []

    def cut(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(blip3o, "drawing_loss", cut)
    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe(), work=tmp_path / "cut", workers=0, settings=SMALL)
    monkeypatch.setattr(blip3o, "drawing_loss", real)
    resumed, states = pretrain(recipe(), work=tmp_path / "cut", workers=0, settings=SMALL)
    assert states["drawing"].step == 2
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    with pytest.raises(ConfigError, match="was begun with another recipe: text_share"):
        pretrain(recipe(text_share=0.1), work=tmp_path / "cut", workers=0, settings=SMALL)


@pytest.mark.slow
def test_a_frozen_language_model_is_left_alone_by_drawing(tmp_path: Path) -> None:
    options: dict[str, Any] = {"work": tmp_path, "workers": 0, "settings": SMALL}
    plan = recipe(text_share=0.0)
    before, _ = pretrain(plan, **options, stages=STAGES[:2])
    after, states = pretrain(plan, **options)
    assert set(states["drawing"].modules) == {"image_queries", "flow_transformer"}
    for name, value in before.model.language_model.state_dict().items():
        assert torch.equal(after.model.language_model.state_dict()[name], value)
    assert not torch.equal(after.model.image_queries, before.model.image_queries)


@pytest.mark.slow
def test_what_is_published_loads_and_says_how_it_was_made(tmp_path: Path) -> None:
    backbone, states = pretrain(recipe(), work=tmp_path / "work", workers=0, settings=SMALL)
    out = tmp_path / "blip3o-small"
    card = publish(backbone, states, out, "cpu", num_images=4)
    assert json.loads((out / "card.json").read_text()) == card
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in out.iterdir()
    }
    loaded = load_blip3o(BackboneConfig(card["name"], str(out), card["weights"]["sha256"]))
    assert card["data"]["images_seen"] == 3 * 2 * 4
    assert set(card["stages"]) == set(STAGES)
    assert 0 < card["decoder_decibels"]["pretraining"] < 30
    images = loaded.generate_images(["a dog"], generator=torch.Generator().manual_seed(0))
    assert images.shape == (1, 3, 64, 64)


def test_recipes_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="text_share"):
        recipe(text_share=-1.0)
    with pytest.raises(ConfigError, match="learning_rate"):
        StageRecipe(1, 1, 2.0)
    with pytest.raises(ConfigError, match="unknown key speed"):
        from_mapping(Blip3oRecipe, {"speed": 1}, "test")
    assert from_mapping(Blip3oRecipe, to_mapping(Blip3oRecipe()), "test") == Blip3oRecipe()
    with pytest.raises(ValueError, match="stages are"):
        pretrain(recipe(), work=Path("unused"), stages=("drawing",))


@pytest.mark.slow
def test_the_command_trains_the_first_stages_only(tmp_path: Path) -> None:
    """One value of a stage may be changed alone; nothing is published before the last stage."""
    options = ["decoder.steps=2", "decoder.batch_size=4", "statistics_images=2"]
    options = [part for option in options for part in ("--set", option)]
    work, out = tmp_path / "work", tmp_path / "out"
    command = ["pretrain", "blip3o", "--work", str(work), "--out", str(out), "--workers", "0"]
    app = typer.Typer()
    register(app)
    ended = CliRunner().invoke(app, [*command, *options, "--until", "decoder"])
    assert ended.exit_code == 0, ended.output
    state = torch.load(work / "decoder" / "checkpoint.pt", weights_only=True)
    assert (state["step"], state["recipe"]["learning_rate"]) == (2, 1e-3)
    assert not out.exists()
    assert CliRunner().invoke(app, [*command, "--until", "never"]).exit_code == 2
