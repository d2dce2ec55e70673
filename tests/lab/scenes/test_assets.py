import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vltune_lab.scenes.background_pack import Crop, cut_view, read_crops, repair, tone_map
from vltune_lab.scenes.library import PACKAGED_ASSETS, PRETRAINING_STYLES
from vltune_lab.scenes.pack_assets import attribution, main
from vltune_lab.scenes.sprite_pack import (
    LONGEST_SIDE,
    PackError,
    Tarball,
    read_sprite_sources,
    trim_and_fit,
)

SPRITES = PACKAGED_ASSETS / "sprites"
BACKGROUNDS = PACKAGED_ASSETS / "backgrounds"
LIMIT = 15 * 1024 * 1024
HEADINGS = {
    "MIT": "Copyright (c) Microsoft Corporation",
    "Apache-2.0": "Version 2.0, January 2004",
    "CC-BY-4.0": "Creative Commons Attribution 4.0 International Public License",
    "CC-BY-SA-4.0": "Attribution-ShareAlike 4.0 International Public License",
    "CC0-1.0": "CC0 1.0 Universal",
}


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def manifest() -> dict:
    return read(SPRITES / "manifest.json")


def listed(manifest: dict) -> list[dict]:
    return [entry for style in manifest["styles"].values() for entry in style["sprites"]]


def test_files_agree_with_the_manifests_and_nothing_else_is_there(manifest: dict) -> None:
    scenes = read(BACKGROUNDS / "manifest.json")["scenes"]
    views = [entry for entries in scenes.values() for entry in entries]
    for folder, entries in ((SPRITES, listed(manifest)), (BACKGROUNDS, views)):
        for entry in entries:
            content = (folder / entry["file"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == entry["sha256"], entry["file"]
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.webp")}
        assert found == {entry["file"] for entry in entries}


def test_every_class_is_in_every_pretraining_style(manifest: dict) -> None:
    assert len(manifest["classes"]) >= 60
    for style in PRETRAINING_STYLES:
        drawn = {entry["class"] for entry in manifest["styles"][style]["sprites"]}
        assert drawn == set(manifest["classes"]), style


def test_one_index_is_one_icon_in_every_style(manifest: dict) -> None:
    sources = read_sprite_sources(PACKAGED_ASSETS / "sprite_sources.csv", list(manifest["styles"]))
    assert len({(source.classname, source.index) for source in sources}) == len(sources)
    table = {
        (style, source.classname, source.index): name
        for source in sources
        for style, name in source.drawings.items()
    }
    packed = {
        (style, entry["class"], entry["index"]): entry["icon"]
        for style, group in manifest["styles"].items()
        for entry in group["sprites"]
    }
    assert packed == table


def test_sizes(manifest: dict) -> None:
    for entry in listed(manifest):
        with Image.open(SPRITES / entry["file"]) as image:
            assert max(image.size) == LONGEST_SIDE, entry["file"]
            assert image.mode == "RGBA", entry["file"]
    files = [*SPRITES.rglob("*"), *BACKGROUNDS.rglob("*")]
    assert sum(path.stat().st_size for path in files if path.is_file()) < LIMIT


def test_views_are_those_of_the_table() -> None:
    manifest = read(BACKGROUNDS / "manifest.json")
    crops = read_crops(PACKAGED_ASSETS / "background_crops.csv")
    wanted = [
        (c.scene, c.panorama, f"{c.scene.replace(' ', '-')}/{c.panorama}_{c.number}.webp")
        for c in crops
    ]
    packed = [
        (scene, e["panorama"], e["file"]) for scene, g in manifest["scenes"].items() for e in g
    ]
    assert packed == wanted
    for _, _, file in packed:
        with Image.open(BACKGROUNDS / file) as image:
            assert image.size == (128, 128)


def test_every_folder_carries_its_licence(manifest: dict) -> None:
    sources = read(PACKAGED_ASSETS / "sources.json")
    assert set(sources["styles"]) == set(manifest["styles"])
    folders = [(SPRITES / style, entry) for style, entry in sources["styles"].items()]
    for folder, entry in [*folders, (BACKGROUNDS, sources["backgrounds"])]:
        text = (folder / "LICENSE.txt").read_text(encoding="utf-8")
        assert HEADINGS[entry["licence"]] in text, folder
    committed = (PACKAGED_ASSETS / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert committed == attribution(sources)


def test_a_missing_tarball_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--source", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "lobehub-fluent-emoji-3d-1.1.0.tgz: not found" in message
    assert "npm pack" in message
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_package_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.tgz"
    path.write_bytes(b"not an archive")
    with pytest.raises(PackError, match=r"x\.tgz: cannot be read"):
        Tarball(path, "npm x").read("package/a")


def test_trim_and_fit_by_hand() -> None:
    """A 10 x 5 opaque block in a 41 x 37 image becomes 112 x 56."""
    image = Image.new("RGBA", (41, 37))
    image.paste((200, 10, 20, 255), (7, 11, 17, 16))
    assert trim_and_fit(image).size == (112, 56)
    with pytest.raises(PackError, match="transparent"):
        trim_and_fit(Image.new("RGBA", (5, 3)))


def test_a_level_view_looks_where_it_is_told() -> None:
    """A panorama whose red is the column and green the row: the centre of the view is its axis."""
    height, width = 64, 128
    columns, rows = np.meshgrid(np.arange(width) / width, np.arange(height) / height)
    panorama = np.stack([columns, rows, np.zeros_like(rows)], axis=-1)
    view = cut_view(panorama, Crop("x", "p", 0, 90.0, 0.0, 60.0), side=31)
    assert view[15, 15] == pytest.approx([90 / 360, 0.5 - 0.5 / height, 0.0], abs=1e-9)
    assert view[0, 15, 1] < view[15, 15, 1] < view[30, 15, 1]
    # 60 degrees across: the outermost ray is atan(30/31 tan 30 deg) = 29.1918 degrees off the axis
    assert view[15, 30, 0] == pytest.approx((90 + 29.1918) / 360, abs=1e-5)
    raised = cut_view(panorama, Crop("x", "p", 0, 90.0, 20.0, 60.0), side=31)
    assert raised[15, 15, 1] == pytest.approx(0.5 - 20 / 180 - 0.5 / height, abs=1e-9)


def test_tone_map_of_middle_grey_by_hand() -> None:
    """Uniform input is exposed to 0.18 * 1.4 = 0.252; 0.252 (1 + 0.252/16) / 1.252 = 0.204448."""
    toned = tone_map(np.full((3, 5, 3), 7.0, dtype=np.float32))
    assert toned == pytest.approx(np.full((3, 5, 3), 0.204448 ** (1 / 2.2)), abs=1e-5)


def test_repair_takes_a_speckle_out_and_leaves_other_panoramas_alone() -> None:
    toned = np.full((11, 13, 3), 0.2)
    toned[5, 7] = 1.0
    assert repair(toned, "hall").max() == pytest.approx(0.2, abs=1 / 255)
    assert np.array_equal(repair(toned, "city"), toned)
