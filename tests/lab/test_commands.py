import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from vltune import cli
from vltune.site_config import read_site_config
from vltune_lab.commands import register
from vltune_lab.scenes.preference_world import PREFERENCE_WORLD

WORLD = {
    "seed": 11,
    "image_size": 48,
    "sites": [
        {
            "name": "north",
            "styles": ["emojione1"],
            "scenes": {"street": 1, "cafe": 1},
            "train": 5,
            "validation": 3,
        }
    ],
    "test": 4,
    "test_styles": ["twemoji"],
}


Run = Callable[..., Any]


@pytest.fixture
def run(run: Run) -> Run:
    """With the lab's commands."""
    register(cli.app)
    return run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "world.yaml"
    path.write_text(yaml.safe_dump(WORLD))
    return path


def test_the_lab_adds_its_commands() -> None:
    app = typer.Typer()
    register(app)
    output = CliRunner().invoke(app, ["--help"]).output
    for name in ("scenes", "pretrain", "demo", "report", "bench", "conditions"):
        assert name in output


@pytest.mark.slow
def test_scenes_make(run: Run, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "world [a]"
    ended = run("scenes", "make", "--config", config, "--out", out, "--set", "test=2")
    assert ended.status == 0
    assert f"10 images in {out}, " in ended.out
    site = read_site_config(out / "north" / "vltune_site.yaml")
    assert len(list(site.train.images.iterdir())) == 5
    assert len(json.loads(site.validation.annotations.read_text())["images"]) == 3
    assert len(list((out / "global/test/images").iterdir())) == 2
    again = run("scenes", "make", "--config", config, "--out", out, "--set", "test=2")
    assert again.status == 0
    assert f"{out} holds this world already: 10 images" in again.out
    other = run("scenes", "make", "--config", config, "--out", out, "--set", "seed=12")
    assert other.status == 1
    assert other.err.startswith(f"error: {out} holds another world")


def test_a_wrong_world_ends_with_a_message(run: Run, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "world"

    def make(*more: str | Path, source: Path = config) -> str:
        ended = run("scenes", "make", "--config", source, "--out", out, *more)
        assert ended.status == 1
        assert ended.err.startswith("error: ")
        assert not out.exists()
        return ended.err

    assert "none.yaml: no such file" in make(source=tmp_path / "none.yaml")
    assert f"{config}: unknown key size" in make("--set", "size=3")
    assert "expected key=value" in make("--set", "seed")
    assert "image_size must be in 32..512" in make("--set", "image_size=8")
    config.write_text(yaml.safe_dump(WORLD | {"sites": []}))
    assert "sites need distinct names" in make()


@pytest.mark.slow
def test_scenes_make_preference(run: Run, tmp_path: Path) -> None:
    """The packaged world, made small; the site's own file leads to its pairs."""
    out = tmp_path / "world"
    sizes = ["test=2", "image_size=32", "partition=dirichlet", "alpha=0.1"]
    world = yaml.safe_load(PREFERENCE_WORLD.read_text())
    for site in world["sites"]:
        site |= {"train": 8, "validation": 8, "test": 8}
    sizes.append(f"sites={json.dumps(world['sites'])}")
    more = [part for size in sizes for part in ("--set", size)]
    ended = run("scenes", "make", "--task", "preference", "--out", out, *more)
    assert ended.status == 0
    assert f"98 images in {out}, " in ended.out
    site = read_site_config(out / "site-3" / "vltune_site.yaml")
    assert site.data == "preference"
    assert site.train.files == (out / "site-3" / "train.jsonl",)
    ended = run("scenes", "make", "--task", "vqa", "--out", out)
    assert ended.status == 2
    ended = run("scenes", "make", "--task", "preference", "--out", out, "--set", "partition=x")
    assert ended.status == 1
    assert "partition: expected one of house_style, dirichlet, iid" in ended.err


@pytest.mark.slow
def test_what_the_library_does_not_have_is_named(run: Run, config: Path, tmp_path: Path) -> None:
    """Also in brackets, as a list of one word looks like rich's markup."""
    site = WORLD["sites"][0] | {"spurious": [["dog", "[/dragon]"]]}
    config.write_text(yaml.safe_dump(WORLD | {"sites": [site]}))
    ended = run("scenes", "make", "--config", config, "--out", tmp_path / "world")
    assert ended.status == 1
    assert "error: site 'north': spurious: unknown ['[/dragon]']" in ended.err
    assert "'zebra'" in ended.err


def test_an_output_that_cannot_be_written_is_named(run: Run, config: Path, tmp_path: Path) -> None:
    """A file stands where the folder should be."""
    out = tmp_path / "taken"
    out.write_text("precious")
    ended = run("scenes", "make", "--config", config, "--out", out)
    assert ended.status == 1
    assert f"error: {out} is a file" in ended.err
    assert out.read_text() == "precious"


@pytest.mark.slow
def test_pretrain_needs_a_model_folder(run: Run, tmp_path: Path) -> None:
    arguments = ("pretrain", "clip", "--work", tmp_path / "work", "--out", tmp_path)
    ended = run(*arguments)
    assert ended.status == 1
    assert f"error: {tmp_path}/open_clip_config.json: no such file" in ended.err
    ended = run(*arguments, "--set", "steps=0")
    assert ended.status == 1
    assert "steps >= 1" in ended.err
    ended = run(*arguments, "--set", "step=1")
    assert "--set: unknown key step" in ended.err


@pytest.mark.slow
def test_scenes_make_unified(run: Run, tmp_path: Path) -> None:
    """One site of another name that only answers; then a wrong value."""
    changes = ["names=[st-mary]", "tasks=[vqa]", "image_size=32", "global_test=2", "partition=iid"]
    changes += ["pool={train: 8, validation: 4, test: 4}", "global_prompts=1"]
    arguments = [part for change in changes for part in ("--set", change)]
    out = tmp_path / "world"
    ended = run("scenes", "make", "--task", "unified", "--out", out, *arguments)
    assert ended.status == 0
    assert "20 images in" in ended.out
    config = read_site_config(out / "st-mary" / "vltune_site.yaml")
    assert (config.data, config.site) == ("unified", "st-mary")
    ended = run("scenes", "make", "--task", "unified", "--out", tmp_path / "b", "--set", "alpha=0")
    assert ended.status != 0
    assert "alpha must be above 0" in ended.err
