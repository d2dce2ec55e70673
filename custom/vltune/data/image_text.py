"""Images with prompts and answers: the one record of preference pairs and of plain answers.

Several records may be about one image. Images are told apart by their content, so each stands once
in a table, is checked once and has one row in the feature cache.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from vltune.data.image_sources import ImageSource, check_source, content_digest
from vltune.data.images import ImageError
from vltune.data.rows import RecordError

log = logging.getLogger(__name__)

_BITS = 64


class Record(NamedTuple):
    """A prompt about an image and what may be said.

    Attributes:
        image: Index into the table of images.
        prompt: What is asked.
        answers: Accepted answers; the first is the one to learn. None where the image itself is to
            be learnt from the prompt.
        rejected: The worse answer of a preference pair, or None.
    """

    image: int
    prompt: str
    answers: tuple[str, ...]
    rejected: str | None = None


class Parsed(NamedTuple):
    """A row after its schema was checked: where its image is, and the rest of a `Record`."""

    where: str
    source: ImageSource
    prompt: str
    answers: tuple[str, ...]
    rejected: str | None


@dataclass(frozen=True)
class ImageTextSamples:
    """One part of a site's data.

    Attributes:
        records: N records in the order of the files.
        images: Images, each content once, in order of first use.
        digests: SHA-256 of each image's content, the key of the feature cache.
        num_skipped: Images left out because they are missing or unreadable.
        num_skipped_records: Records that were about them.
        num_duplicates: Records left out because an earlier one is the same in all parts.
    """

    records: tuple[Record, ...]
    images: tuple[ImageSource, ...]
    digests: tuple[bytes, ...]
    num_skipped: int = 0
    num_skipped_records: int = 0
    num_duplicates: int = 0


def collect(
    rows: Iterable[Parsed],
    *,
    on_bad_image: Literal["stop", "skip"] = "stop",
    max_skipped_share: float = 0.1,
    already_read: Callable[[bytes], bool] | None = None,
) -> ImageTextSamples:
    """Check every image once and put the records of one image together.

    Args:
        rows: Rows of all files of a part.
        on_bad_image: What a missing or unreadable image does: stop everything, or be left out.
        max_skipped_share: Largest share of the images that may be left out, in [0, 1].
        already_read: Says of a content (SHA-256) whether it was decoded before (a feature cache
            knows) and needs no check. It is called for each image and may raise to end a long
            check.

    Raises:
        ImageError: `stop` met bad images, or `skip` too many of them.
        RecordError: No record is left.
    """
    table = _ImageTable(already_read or (lambda digest: False))
    seen: set[Record] = set()
    records: list[Record] = []
    num_skipped_records = num_duplicates = 0
    last = ""
    for row in rows:
        last = row.where
        index = table.index_of(row.source)
        if index is None:
            num_skipped_records += 1
            continue
        record = Record(index, row.prompt, row.answers, row.rejected)
        if record in seen:
            num_duplicates += 1
            continue
        seen.add(record)
        records.append(record)
    if table.errors:
        _judge(table, on_bad_image, max_skipped_share)
    if not records:
        raise RecordError(f"{last or 'the files'}: no record is left. Give files with records.")
    log.info(
        "%d records of %d images, %d images skipped, %d records twice",
        len(records),
        len(table.images),
        len(table.errors),
        num_duplicates,
    )
    return ImageTextSamples(
        records=tuple(records),
        images=tuple(table.images),
        digests=tuple(table.index),
        num_skipped=len(table.errors),
        num_skipped_records=num_skipped_records,
        num_duplicates=num_duplicates,
    )


def divide(
    samples: ImageTextSamples, shares: Mapping[str, float], seed: int
) -> dict[str, ImageTextSamples]:
    """Divide by image: a hash of seed and content says on which side an image and its records are.

    An image stays on its side when others are added or removed, at whichever site it is.

    Args:
        samples: What to divide.
        shares: Name of a part -> its share of the images in (0, 1), together below 1; the rest is
            `train`.
        seed: Another seed divides otherwise.

    Returns:
        `train` and the named parts; counts of what was left out stay with `train`.

    Raises:
        RecordError: A part gets no image.
    """
    parts = ["train", *shares]
    bounds: list[tuple[float, str]] = []
    for name, share in shares.items():
        bounds.append((share + (bounds[-1][0] if bounds else 0.0), name))
    side = [_side(digest, seed, bounds) for digest in samples.digests]
    divided = {}
    for name in parts:
        kept = [index for index, chosen in enumerate(side) if chosen == name]
        if not kept:
            raise RecordError(
                f"the hash split leaves no image of {len(side)} for {name!r}. Choose other shares, "
                "or name files for it."
            )
        divided[name] = _subset(samples, kept, counts=name == "train")
    return divided


def check_disjoint(parts: Mapping[str, ImageTextSamples]) -> None:
    """Refuse an image, by content, in two parts: what was trained on measures nothing.

    Raises:
        RecordError: Naming the parts and how many images they share.
    """
    check_disjoint_contents({name: frozenset(part.digests) for name, part in parts.items()})


def check_disjoint_contents(parts: Mapping[str, frozenset[bytes]]) -> None:
    """As `check_disjoint`, for the digests of each part.

    Raises:
        RecordError: Naming the parts and how many images they share.
    """
    names = list(parts)
    for position, first in enumerate(names):
        for second in names[position + 1 :]:
            common = parts[first] & parts[second]
            if common:
                raise RecordError(
                    f"{len(common)} images are in both {first!r} and {second!r} (equal content). "
                    "Keep each on one side, or give `validation: {share: 0.1}`, which divides by "
                    "image."
                )


class _ImageTable:
    """Images by content; each file or cell is hashed once, each content is decoded once."""

    def __init__(self, already_read: Callable[[bytes], bool]) -> None:
        self.images: list[ImageSource] = []
        self.index: dict[bytes, int] = {}
        self.errors: dict[bytes | ImageSource, ImageError] = {}
        self._already_read = already_read
        self._of_path: dict[Path, int | None] = {}

    def index_of(self, source: ImageSource) -> int | None:
        """The image's index, or None for a bad one."""
        path = getattr(source, "path", None)
        if path is None:
            return self._find(source)
        if path not in self._of_path:
            self._of_path[path] = self._find(source)
        return self._of_path[path]

    def _find(self, source: ImageSource) -> int | None:
        try:
            digest = content_digest(source)
        except ImageError as error:
            self.errors[source] = error
            return None
        if digest in self.index or digest in self.errors:
            return self.index.get(digest)
        try:
            if not self._already_read(digest):
                check_source(source)
        except ImageError as error:
            self.errors[digest] = error
            return None
        self.index[digest] = len(self.images)
        self.images.append(source)
        return self.index[digest]


def _judge(table: _ImageTable, policy: str, max_share: float) -> None:
    errors = list(table.errors.values())
    total = len(errors) + len(table.images)
    shown = "".join(f"\n  {error}" for error in errors[:5])
    more = f"\n  and {len(errors) - 5} more" if len(errors) > 5 else ""
    if policy == "stop":
        raise ImageError(
            f"{len(errors)} of {total} images cannot be used:{shown}{more}\n"
            "Mend them, or set `on_bad_image: skip` in vltune_site.yaml to leave them out."
        )
    if len(errors) > max_share * total:
        raise ImageError(
            f"{len(errors)} of {total} images cannot be used, more than the share of {max_share:g} "
            f"that may be left out:{shown}{more}\n"
            "Mend them, or raise `max_skipped_share` in vltune_site.yaml."
        )


def _side(digest: bytes, seed: int, bounds: Sequence[tuple[float, str]]) -> str:
    hashed = hashlib.sha256(f"vltune split {seed} ".encode() + digest).digest()
    place = int.from_bytes(hashed[: _BITS // 8]) / 2**_BITS
    return next((name for bound, name in bounds if place < bound), "train")


def _subset(samples: ImageTextSamples, kept: Sequence[int], *, counts: bool) -> ImageTextSamples:
    new_index = {old: new for new, old in enumerate(kept)}
    subset = replace(
        samples,
        records=tuple(
            record._replace(image=new_index[record.image])
            for record in samples.records
            if record.image in new_index
        ),
        images=tuple(samples.images[index] for index in kept),
        digests=tuple(samples.digests[index] for index in kept),
    )
    if counts:
        return subset
    return replace(subset, num_skipped=0, num_skipped_records=0, num_duplicates=0)
