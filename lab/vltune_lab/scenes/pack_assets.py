"""Make the asset pack from the published packages: `python -m vltune_lab.scenes.pack_assets`.

What is taken from where is read from three small files of the repository: `assets/sources.json`
(packages and licences), `assets/sprite_sources.csv` (which drawing shows which class) and
`assets/background_crops.csv` (views into panoramas). Needs the wheels resvg-py and OpenEXR.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vltune.files import write_bytes_atomic
from vltune_lab.scenes.background_pack import pack_backgrounds, read_crops
from vltune_lab.scenes.library import PACKAGED_ASSETS
from vltune_lab.scenes.sprite_pack import PackError, Tarball, pack_sprites, read_sprite_sources

PARTS = ("sprites", "backgrounds")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 2 when the pack could not be made."""
    parser = argparse.ArgumentParser(description="Make the asset pack from npm tarballs.")
    parser.add_argument("--source", type=Path, required=True, help="folder of the tarballs")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, e.g. assets")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    options = parser.parse_args(arguments)
    try:
        pack(options.source, options.out, options.parts)
    except PackError as error:
        sys.stderr.write(f"pack_assets: {error}\n")
        return 2
    return 0


def pack(source: Path, out: Path, parts: Sequence[str] = PARTS) -> None:
    """Write the wanted parts of the pack, their manifests, licences and the attribution.

    Args:
        source: Folder of the tarballs named in sources.json.
        out: Folder that receives `sprites/`, `backgrounds/` and `ATTRIBUTION.md`.
        parts: Of `PARTS`.

    Raises:
        PackError: A tarball is missing or does not hold what was expected.
    """
    config = json.loads((PACKAGED_ASSETS / "sources.json").read_text(encoding="utf-8"))
    wanted = [entry for entry, part in _entries(config, out) if part in parts]
    tarballs = {
        entry["tarball"]: Tarball(source / entry["tarball"], entry["package"]) for entry in wanted
    }
    if "sprites" in parts:
        _pack_sprites(out / "sprites", config["styles"], tarballs)
    if "backgrounds" in parts:
        _pack_backgrounds(out / "backgrounds", config["backgrounds"], tarballs)
    for entry, part in _entries(config, out):
        if part in parts:
            text = PACKAGED_ASSETS / "licences" / entry["licence_text"]
            shutil.copyfile(text, entry["folder"] / "LICENSE.txt")
    write_bytes_atomic(out / "ATTRIBUTION.md", attribution(config).encode())


def _entries(config: Mapping[str, Any], out: Path) -> list[tuple[dict[str, Any], str]]:
    """Every source with the folder it fills, and the part it belongs to."""
    entries = [
        ({**entry, "folder": out / "sprites" / style}, "sprites")
        for style, entry in config["styles"].items()
    ]
    return [*entries, ({**config["backgrounds"], "folder": out / "backgrounds"}, "backgrounds")]


def _pack_sprites(
    out: Path, styles: Mapping[str, Mapping[str, str]], tarballs: Mapping[str, Tarball]
) -> None:
    sources = read_sprite_sources(PACKAGED_ASSETS / "sprite_sources.csv", list(styles))
    manifest = pack_sprites(out, styles, sources, lambda entry: tarballs[entry["tarball"]])
    write_bytes_atomic(out / "manifest.json", json.dumps(manifest).encode())


def _pack_backgrounds(out: Path, entry: Mapping[str, str], tarballs: Mapping[str, Tarball]) -> None:
    crops = read_crops(PACKAGED_ASSETS / "background_crops.csv")
    manifest = pack_backgrounds(out, crops, tarballs[entry["tarball"]], entry["member"])
    write_bytes_atomic(out / "manifest.json", json.dumps(manifest).encode())


ATTRIBUTION_HEAD = """# Attribution of the asset pack

The images below are other people's work, adapted for VLTune. They are not covered by the
licence of the code; each folder carries its own `LICENSE.txt`. The adapted images stay under the
licence of the original (share-alike where it asks for that: openmoji, emojione1).

Changes to the sprites: a selection of drawings, rasterised where they were vectors, trimmed to
their outline, scaled to 112 px on the longer side, saved as WebP. Changes to the backgrounds: a
selection of views, tone-mapped from high dynamic range, projected to perspective, filtered against
artefacts, saved as 128 px WebP. Scenes composed from them mix, tint and overlap the sprites.

| Folder | Work | By | Licence | Taken from | Upstream |
|---|---|---|---|---|---|
"""


def attribution(config: Mapping[str, Any]) -> str:
    """Text of ATTRIBUTION.md."""
    rows = [(f"sprites/{style}", entry) for style, entry in config["styles"].items()]
    rows.append(("backgrounds", config["backgrounds"]))
    lines = [
        f"| {folder} | {entry['work']} | {entry['author']} | {entry['licence']} "
        f"| {entry['package']} | {entry['url']} |\n"
        for folder, entry in rows
    ]
    return ATTRIBUTION_HEAD + "".join(lines) + ATTRIBUTION_TAIL


ATTRIBUTION_TAIL = """
Emoji designed by OpenMoji, the open-source emoji and icon project. License: CC BY-SA 4.0.
Twemoji graphics: Copyright 2014-2021 Twitter, Inc and other contributors, Copyright 2022-present
Jason Sofonia and Justine De Caires, CC BY 4.0. EmojiOne 1: provided free by EmojiOne, CC BY-SA 4.0.
Fluent Emoji: Copyright (c) Microsoft Corporation, MIT; the npm packages carry no licence file, so
the text is that of the upstream repository's licence (MIT) with its copyright line.
"""


if __name__ == "__main__":
    sys.exit(main())
