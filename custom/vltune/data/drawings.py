"""Captioned images to learn drawing from: `image, caption`.

JSON lines or Parquet, as `captions`. The caption may be called `prompt`; `captions`, a list of
texts, gives an image several, each a record of its own. All rows of a site use the same key.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from vltune.data.image_text import ImageTextSamples, Parsed, collect
from vltune.data.rows import RecordError, Row, key_names, read_rows, texts_of

KEYS = ("caption", "prompt", "captions")


def load_drawings(
    files: Sequence[Path],
    *,
    on_bad_image: Literal["stop", "skip"] = "stop",
    max_skipped_share: float = 0.1,
    already_read: Callable[[bytes], bool] | None = None,
) -> ImageTextSamples:
    """Read captions and check every image; see `collect`.

    Args:
        files: `.jsonl` and `.parquet` files, in order.
        on_bad_image: What a missing or unreadable image does.
        max_skipped_share: Largest share of the images that may be left out.
        already_read: Says of a content whether it was decoded before.

    Returns:
        Records whose prompt is the caption, without answers.

    Raises:
        RecordError: A file or row is wrong: missing or unknown key, empty text or list, rows of
            different keys, no record.
        ParquetError: A Parquet file cannot be read, or pyarrow is missing.
        ImageError: Bad images (`collect`).
    """
    return collect(
        _parse_all(files),
        on_bad_image=on_bad_image,
        max_skipped_share=max_skipped_share,
        already_read=already_read,
    )


def _parse_all(files: Sequence[Path]) -> Iterator[Parsed]:
    first: tuple[str, str] | None = None
    for path in files:
        for row in read_rows(path):
            key = _key_of(row)
            first = first or (row.where, key)
            if key != first[1]:
                raise RecordError(
                    f"{row.where}: has {key!r}, but the first row ({first[0]}) has {first[1]!r}. "
                    "Use the same key throughout."
                )
            for caption in texts_of(row, key, single="caption", several="captions"):
                yield Parsed(row.where, row.image, caption, (), None)


def _key_of(row: Row) -> str:
    unknown = set(row.values) - set(KEYS)
    if unknown:
        hint = " Rows with answers belong to `vqa`." if unknown & {"answer", "answers"} else ""
        raise RecordError(
            f"{row.where}: unknown key {key_names(unknown)}; known: image, {', '.join(KEYS)}. "
            f"Remove it.{hint}"
        )
    present = [key for key in KEYS if key in row.values]
    if len(present) != 1:
        raise RecordError(f"{row.where}: has {len(present)} of {', '.join(KEYS)}; give one.")
    return present[0]
