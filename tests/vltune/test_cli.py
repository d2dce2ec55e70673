from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from vltune import __version__
from vltune.backbones.clip import BackboneConfig, load_clip
from vltune.cli import app
from vltune.data.multilabel import read_image
from vltune.features import FeatureCache

Folder = Callable[..., Path]


Run = Callable[..., Any]


@pytest.fixture
def site(tmp_path: Path, clip_folder: Folder) -> Path:
    """A site file that names the weights of `tiny` and a folder with brackets in its name."""
    split = {"images": "images", "annotations": "instances.json"}
    content = {
        "train": split,
        "validation": split,
        "weights": {"tiny": str(clip_folder())},
        "cache_dir": "cache [/site]",
    }
    path = tmp_path / "vltune_site.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def cache(site: Path) -> FeatureCache:
    """The site's cache, with the features of two images."""
    weights = str(site.parent / "tiny")
    cache = FeatureCache(
        site.parent / "cache [/site]", load_clip(BackboneConfig("tiny", weights), bfloat16=False)
    )
    images = [site.parent / f"{shade}.png" for shade in (10, 200)]
    for path in images:
        Image.new("RGB", (40, 24), (int(path.stem), 0, 0)).save(path)
    assert cache.encode(images, read_image).num_encoded == 2
    return cache


def test_version(run: Run) -> None:
    assert run("version") == (0, f"{__version__}\n", "")
    assert CliRunner().invoke(app, ["version"]).output == f"{__version__}\n"


def test_no_command_shows_help() -> None:
    output = CliRunner().invoke(app, []).output
    assert "version" in output
    assert "cache" in output


def test_cache_size_says_where_and_how_much(run: Run, site: Path, cache: FeatureCache) -> None:
    """An image takes (1 + M) D numbers of 2 bytes and a digest of 32: 16 * 11 * 2 + 32 = 384."""
    ended = run("cache", "size", "--site", site, "--model", "tiny", "--images", 250_000)
    assert ended == (0, f"folder: {cache.folder}\n250000 images take 96.0 MB\n", "")
    assert cache.folder.is_dir()


def test_cache_delete_removes_this_backbones_features(
    run: Run, site: Path, cache: FeatureCache
) -> None:
    other = cache.folder.with_name("of another backbone")
    other.mkdir()
    ended = run("cache", "delete", "--site", site, "--model", "tiny")
    assert ended == (0, f"deleted {cache.folder}\n", "")
    assert list(cache.folder.parent.iterdir()) == [other]
    assert run("cache", "delete", "--site", site, "--model", "tiny").status == 0


def test_weights_can_be_given(run: Run, site: Path, cache: FeatureCache) -> None:
    weights = site.parent / "tiny"
    ended = run("cache", "size", "--site", site, "--model", "label", "--weights", weights)
    assert ended.status == 0
    assert str(cache.folder) in ended.out


def test_errors_have_a_message_and_status_1(run: Run, site: Path) -> None:
    missing = site.with_name("none.yaml")
    ended = run("cache", "size", "--site", missing)
    assert ended.status == 1
    assert ended.err.startswith(f"error: {missing}: no such file")
    assert not ended.out

    ended = run("cache", "size", "--site", site)
    assert ended.status == 1
    assert ended.err.startswith(f"error: {site}: names no weights of 'clip-compact'")
    assert "--weights" in ended.err

    ended = run("cache", "delete", "--site", site, "--model", "tiny", "--weights", "/no/[/where]")
    assert ended.status == 1
    assert "'/no/[/where]'" in ended.err

    site.write_text("train: {images: [/x], annotations: a.json}\n")
    ended = run("cache", "size", "--site", site)
    assert ended.status == 1
    assert "vltune_site.yaml" in ended.err
    assert "validation" in ended.err


@pytest.mark.parametrize("arguments", [["cash"], ["cache", "size"], ["version", "--loud"]])
def test_wrong_usage_has_status_2(run: Run, arguments: list[str]) -> None:
    ended = run(*arguments)
    assert ended.status == 2
    assert ended.err.startswith("Usage: ")
