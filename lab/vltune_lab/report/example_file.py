"""`examples.json`: a few images of the global test set and what the model made of them.

Everything that the report shows of them is in the file, so that it can be built without the data.
"""

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vltune.config import ConfigError, from_mapping, to_mapping
from vltune.files import write_json_atomic

SCHEMA_VERSION = 1
EXAMPLES_FILE = "examples.json"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class ExamplesError(ValueError):
    """`examples.json` is damaged; the message names file, key and cure."""


@dataclass(frozen=True)
class Prediction:
    """Score of one class in [0, 1] and its truth: 1 present, 0 absent, -1 unknown."""

    classname: str
    score: float
    label: int


@dataclass(frozen=True)
class RegionMap:
    """Where one label's transported mass comes from.

    Attributes:
        classname: The label.
        mass: Rows of the patch grid; shares of the label's mass, averaged over conditions by the
            gate; they sum to 1.
    """

    classname: str
    mass: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.mass}
        if len(widths) != 1 or 0 in widths:
            raise ValueError(f"mass of {self.classname!r}: expected rows of equal length")
        if any(not 0 <= share <= 1 for row in self.mass for share in row):
            raise ValueError(f"mass of {self.classname!r}: expected shares in [0, 1]")


@dataclass(frozen=True)
class Example:
    """One image.

    Attributes:
        index: Row of the global test set.
        image_png: Base64 PNG of the image as the image tower sees it.
        gate: Weights of the K conditions, sum 1.
        predictions: Every present label and the strongest others, by falling score.
        maps: One for each present label; empty without transport.
    """

    index: int
    image_png: str
    gate: tuple[float, ...]
    predictions: tuple[Prediction, ...]
    maps: tuple[RegionMap, ...] = ()

    def __post_init__(self) -> None:
        decode_png(self.image_png)


@dataclass(frozen=True)
class Examples:
    """Content of examples.json: K condition names and the images, chosen by `seed`."""

    seed: int
    conditions: tuple[str, ...]
    examples: tuple[Example, ...]
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(
                f"schema_version is {self.schema_version}, this VLTune reads {SCHEMA_VERSION}"
            )
        for number, example in enumerate(self.examples):
            if len(example.gate) != len(self.conditions):
                raise ValueError(
                    f"examples[{number}]: {len(example.gate)} gate weights for "
                    f"{len(self.conditions)} conditions"
                )


def encode_png(content: bytes) -> str:
    """Base64 text of a PNG's bytes."""
    return base64.b64encode(content).decode()


def decode_png(text: str) -> bytes:
    """Bytes of a base64 PNG.

    Raises:
        ValueError: It is no base64, or no PNG.
    """
    try:
        content = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"image_png is no base64: {error}") from error
    if not content.startswith(PNG_SIGNATURE):
        raise ValueError("image_png is no PNG")
    return content


def save_examples(
    run_folder: Path, seed: int, conditions: Sequence[str], examples: Sequence[Example]
) -> Path:
    """Write examples.json whole or not at all; return its path."""
    content = to_mapping(Examples(seed, tuple(conditions), tuple(examples)))
    write_json_atomic(run_folder / EXAMPLES_FILE, content)
    return run_folder / EXAMPLES_FILE


def load_examples(run_folder: Path) -> Examples | None:
    """Read the examples of a run; None where there are none.

    Raises:
        ExamplesError: The file is damaged.
    """
    path = run_folder / EXAMPLES_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return from_mapping(Examples, content, str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ExamplesError(f"{path}: cannot be read: {error.strerror}") from error
    except (ConfigError, ValueError) as error:
        text = str(error) if isinstance(error, ConfigError) else f"{path}: {error}"
        raise ExamplesError(
            f"{text}. The file is damaged: delete it to build the report without test images."
        ) from error
