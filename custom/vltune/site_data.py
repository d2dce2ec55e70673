"""The parts of a site's data, as its file names them: see `vltune.site_config`."""

import re
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
        share: In (0, 1), chosen by image with `AnswerSettings.split_seed`.
    """

    files: tuple[Path, ...] = ()
    share: float | None = None

    def __post_init__(self) -> None:
        if bool(self.files) == (self.share is not None):
            raise ValueError("expected either `files: [...]` or `share: 0.1`")
        _check_share(self.share)
        if len(set(self.files)) != len(self.files):
            raise ValueError("files: a file is there twice")

    @property
    def has_files(self) -> bool:
        """Whether it is no share."""
        return bool(self.files)

    def paths(self) -> tuple[Path, ...]:
        """Everything that belongs to the site; images lie below the folders of the files."""
        return (*self.files, *(path.parent for path in self.files))


@dataclass(frozen=True)
class VqaFiles:
    """Questions about images in the two files of VQA v2.

    Attributes:
        questions: JSON with `questions`.
        annotations: JSON with `annotations`, ten answers for each question.
        images: Folder of the images.
        pattern: Their names after the image's number, such as `COCO_train2014_%012d.jpg`; None:
            that name with the `data_subtype` of the questions file.
    """

    questions: Path
    annotations: Path
    images: Path
    pattern: str | None = None

    def __post_init__(self) -> None:
        _check_pattern(self.pattern)

    def paths(self) -> tuple[Path, ...]:
        """Everything that belongs to the site."""
        return self.questions, self.annotations, self.images


@dataclass(frozen=True)
class VqaSplit:
    """One part of a site's questions: the keys of `VqaFiles`, or a share of the training images.

    Attributes:
        questions: See `VqaFiles`.
        annotations: See `VqaFiles`.
        images: See `VqaFiles`.
        pattern: See `VqaFiles`.
        share: In (0, 1), chosen by image with `AnswerSettings.split_seed`.
    """

    questions: Path | None = None
    annotations: Path | None = None
    images: Path | None = None
    pattern: str | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        given = [item is not None for item in (self.questions, self.annotations, self.images)]
        if self.share is not None and (any(given) or self.pattern is not None):
            raise ValueError("expected either `questions, annotations, images` or `share: 0.1`")
        if self.share is None and not all(given):
            raise ValueError("expected `questions`, `annotations` and `images`, or `share: 0.1`")
        _check_share(self.share)
        _check_pattern(self.pattern)

    @property
    def has_files(self) -> bool:
        """Whether it is no share."""
        return self.share is None

    def files(self) -> VqaFiles:
        """The files of a part that is no share."""
        assert self.questions is not None
        assert self.annotations is not None
        assert self.images is not None
        return VqaFiles(self.questions, self.annotations, self.images, self.pattern)

    def paths(self) -> tuple[Path, ...]:
        """Everything that belongs to the site."""
        return self.files().paths() if self.has_files else ()


@dataclass(frozen=True)
class CaptionFiles:
    """Captioned images, for learning to draw what a caption says.

    Attributes:
        files: `.jsonl` or `.parquet`; image paths in them are relative to the file's folder.
    """

    files: tuple[Path, ...]

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("files is empty; name a file, or leave `captions` out")
        if len(set(self.files)) != len(self.files):
            raise ValueError("files: a file is there twice")


@dataclass(frozen=True)
class UnifiedSplit:
    """One part of the data of a site that answers, draws, or does both.

    Attributes:
        vqa: Questions, or None.
        captions: Captioned images, or None.
        share: In place of both: a share of the training images, in (0, 1).
        prompts: GenEval JSON lines; what is drawn for them is judged.
    """

    vqa: VqaFiles | None = None
    captions: CaptionFiles | None = None
    share: float | None = None
    prompts: Path | None = None

    def __post_init__(self) -> None:
        if self.share is not None and self.has_files:
            raise ValueError("expected either files (`vqa`, `captions`) or `share: 0.1`")
        if self.share is None and not self.has_files and self.prompts is None:
            raise ValueError("expected `vqa`, `captions`, `prompts` or `share: 0.1`")
        _check_share(self.share)

    @property
    def has_files(self) -> bool:
        """Whether it names images of its own."""
        return self.vqa is not None or self.captions is not None

    def paths(self) -> tuple[Path, ...]:
        """Everything that belongs to the site; images lie below the folders of the files."""
        found = self.vqa.paths() if self.vqa is not None else ()
        if self.captions is not None:
            found += (*self.captions.files, *(path.parent for path in self.captions.files))
        return found if self.prompts is None else (*found, self.prompts)


def _check_share(share: float | None) -> None:
    if share is not None and not 0 < share < 1:
        raise ValueError(f"share is {share}; expected more than 0 and less than 1")


def _check_pattern(pattern: str | None) -> None:
    if pattern is not None and not re.fullmatch(r"[^%]*%(0\d{1,2})?d[^%]*", pattern):
        raise ValueError(
            f"pattern is {pattern!r}; expected a file name with one %d or %012d for the image's "
            "number"
        )
