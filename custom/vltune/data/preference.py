"""Preference pairs in the form of RLAIF-V: `image, question, chosen, rejected`.

JSON lines, where `image` is a path relative to the file's folder, or Parquet as on the hub, where
it is the bytes, a struct of `bytes` and `path`, or a path. The other columns of RLAIF-V are allowed
and not read.

Source: RLAIF-V-Dataset's card (openbmb, hub), arXiv 2405.17220.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from vltune.data.image_text import ImageTextSamples, Parsed, collect
from vltune.data.rows import RecordError, Row, key_names, read_rows, text_of

KEYS = ("question", "chosen", "rejected")
NOT_READ = frozenset({"ds_name", "origin_dataset", "origin_split", "idx", "image_path"})


def load_preference(
    files: Sequence[Path],
    *,
    on_bad_image: Literal["stop", "skip"] = "stop",
    max_skipped_share: float = 0.1,
    already_read: Callable[[bytes], bool] | None = None,
) -> ImageTextSamples:
    """Read preference pairs and check every image; arguments beyond `files` as in `collect`.

    Args:
        files: `.jsonl` and `.parquet` files, in order.
        on_bad_image: What a missing or unreadable image does.
        max_skipped_share: Largest share of the images that may be left out.
        already_read: Says of a content whether it was decoded before.

    Returns:
        Records with one accepted answer and a rejected one.

    Raises:
        RecordError: A file or row is wrong: missing or unknown key, empty text, chosen and rejected
            answer the same, no record.
        ParquetError: A Parquet file cannot be read, or pyarrow is missing.
        ImageError: Bad images (`collect`).
    """
    return collect(
        (_parse(row) for path in files for row in read_rows(path)),
        on_bad_image=on_bad_image,
        max_skipped_share=max_skipped_share,
        already_read=already_read,
    )


def _parse(row: Row) -> Parsed:
    missing = set(KEYS) - set(row.values)
    if missing:
        raise RecordError(
            f"{row.where}: missing {key_names(missing)}. Preference pairs have image, "
            f"{', '.join(KEYS)}; for answers without a rejected one say `data: captions`."
        )
    unknown = set(row.values) - set(KEYS) - NOT_READ
    if unknown:
        raise RecordError(
            f"{row.where}: unknown key {key_names(unknown)}; known: image, {', '.join(KEYS)}; not "
            f"read: {', '.join(sorted(NOT_READ))}. Remove it."
        )
    question, chosen, rejected = (text_of(row, key) for key in KEYS)
    if chosen == rejected:
        raise RecordError(
            f"{row.where}: 'chosen' and 'rejected' are the same. Correct or remove the row."
        )
    return Parsed(row.where, row.image, question, (chosen,), rejected)
