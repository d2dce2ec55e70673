"""Pictures that the global model drew after some rounds, the same prompts and random draws each."""

import json
from dataclasses import dataclass
from pathlib import Path

from vltune.config import ConfigError, from_mapping
from vltune_lab.report.maps import picture_tag
from vltune_lab.report.markup import Markup, section, table, tag

FOLDER = "drawings"
INDEX = "index.json"


@dataclass(frozen=True)
class Drawings:
    """Index of a run's pictures.

    Attributes:
        prompts: N.
        rounds: Rounds behind the model that drew, rising; 0 is the untouched backbone.
        files: File names below `FOLDER`, a row of N for each of `rounds`.
    """

    prompts: tuple[str, ...]
    rounds: tuple[int, ...]
    files: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if len(self.files) != len(self.rounds) or any(
            len(row) != len(self.prompts) for row in self.files
        ):
            raise ValueError("expected a file for each round and prompt")
        if any(Path(name).name != name for row in self.files for name in row):
            raise ValueError("expected bare file names")


def load_drawings(run_folder: Path) -> Drawings | None:
    """Read the index; None where the run drew nothing.

    Raises:
        ConfigError: The index is damaged.
    """
    path = run_folder / FOLDER / INDEX
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: is no JSON ({error}). Delete the folder.") from error
    return from_mapping(Drawings, content, str(path))


def drawn_pictures(run_folder: Path) -> Markup | None:
    """A row of pictures for each round; None where the run drew nothing.

    Raises:
        ConfigError: The index is damaged.
    """
    drawings = load_drawings(run_folder)
    if drawings is None:
        return None
    rows = []
    for number, files in zip(drawings.rounds, drawings.files, strict=True):
        pictures = [
            picture_tag((run_folder / FOLDER / name).read_bytes(), f"{prompt}, round {number}")
            for name, prompt in zip(files, drawings.prompts, strict=True)
        ]
        rows.append([tag("span", "before" if number == 0 else f"round {number}"), *pictures])
    note = (
        "One picture a prompt, with the same random draws in every row: what differs is the "
        "adapter."
    )
    return section(
        "What it draws",
        tag("p", note, class_="quiet"),
        tag("div", table(["", *drawings.prompts], rows), class_="drawings"),
    )
