"""The parts of a site's data, as its file names them: see `vltune.site_config`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Split:
    """One part of a site's data.

    Attributes:
        images: Folder of the images.
        annotations: COCO instances JSON.
    """

    images: Path
    annotations: Path

    def paths(self) -> tuple[Path, ...]:
        """Everything that belongs to the site."""
        return self.images, self.annotations


@dataclass(frozen=True)
class AnswerSplit:
    """One part of a site's prompts and answers: files, or a share of the training images.

    Attributes:
        files: `.jsonl` or `.parquet`; image paths in them are relative to the file's folder.
        share: In (0, 1), chosen by image with `AnswerSiteConfig.split_seed`.
    """

    files: tuple[Path, ...] = ()
    share: float | None = None

    def __post_init__(self) -> None:
        if bool(self.files) == (self.share is not None):
            raise ValueError("expected either `files: [...]` or `share: 0.1`")
        if self.share is not None and not 0 < self.share < 1:
            raise ValueError(f"share is {self.share}; expected more than 0 and less than 1")
        if len(set(self.files)) != len(self.files):
            raise ValueError("files: a file is there twice")

    def paths(self) -> tuple[Path, ...]:
        """Everything that belongs to the site; images lie below the folders of the files."""
        return (*self.files, *(path.parent for path in self.files))
