"""Images with a prompt and one or several accepted answers: `image, prompt, answer`.

JSON lines or Parquet, as `preference`. The prompt may be called `question`; `answers`, a list of
texts, takes the place of `answer`. All rows of a site use the same keys.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from vltune.data.image_text import ImageTextSamples, Parsed, collect
from vltune.data.rows import RecordError, Row, key_names, read_rows, text_of, texts_of

PROMPTS = ("prompt", "question")
ANSWERS = ("answer", "answers")


def load_captions(
    files: Sequence[Path],
    *,
    on_bad_image: Literal["stop", "skip"] = "stop",
    max_skipped_share: float = 0.1,
    already_read: Callable[[bytes], bool] | None = None,
) -> ImageTextSamples:
    """Read prompts with their answers and check every image; see `collect`.

    Args:
        files: `.jsonl` and `.parquet` files, in order.
        on_bad_image: What a missing or unreadable image does.
        max_skipped_share: Largest share of the images that may be left out.
        already_read: Says of a content whether it was decoded before.

    Returns:
        Records with accepted answers in the file's order, repeats kept (annotators may agree), and
        no rejected one.

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
    first: tuple[str, str, str] | None = None
    for path in files:
        for row in read_rows(path):
            prompt_key, answer_key = _keys_of(row)
            first = first or (row.where, prompt_key, answer_key)
            if (prompt_key, answer_key) != first[1:]:
                raise RecordError(
                    f"{row.where}: has {prompt_key!r} and {answer_key!r}, but the first row "
                    f"({first[0]}) has {first[1]!r} and {first[2]!r}. Use the same keys throughout."
                )
            prompt = text_of(row, prompt_key)
            answers = texts_of(row, answer_key, single="answer", several="answers")
            yield Parsed(row.where, row.image, prompt, answers, None)


def _keys_of(row: Row) -> tuple[str, str]:
    unknown = set(row.values) - {*PROMPTS, *ANSWERS}
    if unknown:
        hint = " For preference pairs say `data: preference`." if "rejected" in unknown else ""
        raise RecordError(
            f"{row.where}: unknown key {key_names(unknown)}; known: image, "
            f"{', '.join((*PROMPTS, *ANSWERS))}. Remove it.{hint}"
        )
    chosen = []
    for options in (PROMPTS, ANSWERS):
        present = [key for key in options if key in row.values]
        if len(present) != 1:
            found = "both" if present else "neither"
            raise RecordError(f"{row.where}: has {found} of {' and '.join(options)}; give one.")
        chosen += present
    return chosen[0], chosen[1]
