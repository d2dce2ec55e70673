"""Where an image's bytes are: a file of the site, or a cell of a Parquet file.

Both are small handles that read when asked, so that a table of a hundred thousand images needs no
memory for them; both say what their content hashes to, the key of the feature cache. Messages name
the line that gives the image, not the image: file names may tell something about persons.
"""

import hashlib
import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from vltune.data.images import ImageError, decode_image
from vltune.data.parquet import ParquetImages


@dataclass(frozen=True)
class ImageFile:
    """An image file.

    Attributes:
        path: Where it is.
        where: The line that names it.
    """

    path: Path
    where: str = field(compare=False)

    def open(self) -> BinaryIO:
        """Open it.

        Raises:
            ImageError: There is no such file, or it cannot be read.
        """
        # A folder or a pipe is no image; os.path.isfile never raises, unlike Path.is_file.
        if not os.path.isfile(self.path):
            raise ImageError(f"{self.where}: no such image file. Put it there or correct the line.")
        try:
            return self.path.open("rb")
        except OSError as error:
            raise ImageError(
                f"{self.where}: the image file cannot be opened ({error.strerror})."
            ) from error


@dataclass(frozen=True)
class ImageCell:
    """An image whose bytes stand in a row of a Parquet file.

    Attributes:
        column: The column.
        row: From 0.
    """

    column: ParquetImages
    row: int

    @property
    def where(self) -> str:
        """File and row, counted from 1."""
        return f"{self.column.path}: row {self.row + 1}"

    def open(self) -> BinaryIO:
        """Read the cell.

        Raises:
            ImageError: It holds no bytes (any more).
        """
        cell = self.column.cell(self.row)
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(content, bytes):
            raise ImageError(f"{self.where}: holds no image bytes any more. Load the file again.")
        return io.BytesIO(content)


ImageSource = ImageFile | ImageCell


def content_digest(source: ImageSource) -> bytes:
    """SHA-256 of an image's bytes.

    Raises:
        ImageError: They cannot be read.
    """
    hashed = hashlib.sha256()
    with source.open() as stream:
        try:
            while block := stream.read(1 << 20):
                hashed.update(block)
        except OSError as error:
            raise ImageError(f"{source.where}: cannot be read ({error.strerror}).") from error
    return hashed.digest()


def check_source(source: ImageSource) -> None:
    """Decode the whole image and forget it.

    Raises:
        ImageError: As `read_source`.
    """
    with source.open() as stream:
        decode_image(stream, source.where, shrink=True)


def read_source(source: ImageSource) -> Image.Image:
    """Decode to an upright 8-bit RGB picture, as `vltune.data.images.read_image`.

    Raises:
        ImageError: Missing, truncated, not an image, too large, or of float or 32-bit pixels.
    """
    with source.open() as stream:
        return decode_image(stream, source.where)
