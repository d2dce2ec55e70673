"""What the server learns of a failure at a site: a return code and a text without paths or data."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from nvflare.apis.shareable import Shareable, make_reply

HEADER_ERROR = "vltune_error"
MAX_ERROR = 500
_CPU_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")
MAX_REASON = 1000
"""Longest text about a site that the server logs and writes down."""

_PATH = re.compile(
    r"(?:[A-Za-z]:)?[\w.~{}-]*[/\\][^\s'\",;:)\]]*"
    r"|\b(?!vltune_site\.ya?ml\b)[\w-]+\.(?:jpe?g|png|bmp|tiff?|gif|webp|dcm|jsonl?|parquet|ya?ml|csv|npy|npz|safetensors|pth?|txt)\b"
)

_ABOUT_DATA = (
    "vltune.data.",
    "vltune.config",
    "vltune.site_",
    "vltune.geneval_prompts",
)
"""Rooms whose errors quote what stands in a site's own files."""
_KEYS = frozenset(
    {
        *("annotations", "annotation_id", "answer", "answers", "bbox", "bytes", "caption"),
        *("captions", "categories", "category_id", "chosen", "class", "color", "count"),
        *("data_subtype", "exclude", "file_name", "files", "id", "image", "image_id", "images"),
        *("include", "iscrowd", "name", "path", "position", "prompt", "question", "question_id"),
        *("questions", "rejected", "tag"),
    }
)
_QUOTE = re.compile(r"(?<!\w)(?P<mark>['\"])(?:(?P<word>\w+)(?P=mark))?")
_NUMBERED = re.compile(
    r"\b(image|images|annotation|annotations|category|categories|question|id|image_id|category_id|"
    r"and):? -?\d+"
)
"""Numbers that a site gave its entries; some count patients that way."""


def error_reply(return_code: str, message: str) -> Shareable:
    """Answer without content that carries a reason the server may show."""
    return make_reply(return_code, {HEADER_ERROR: message[:MAX_ERROR]})


def error_of(message: Shareable) -> str:
    """Return code and reason of a failed task."""
    reason = message.get_header(HEADER_ERROR, "")
    is_text = isinstance(reason, str) and bool(reason)
    text = reason[:MAX_ERROR] if is_text else "no reason given; see the site's own log"
    return shown(f"{message.get_return_code()}: {text}")


def shown(text: str) -> str:
    """One printable line of at most `MAX_REASON` characters.

    What a site sends may neither forge a line of the log, nor fill a disk, nor be half a character
    that no file can hold.
    """
    line = " ".join(text[: 2 * MAX_REASON].split())
    line = line if len(line) <= MAX_REASON else f"{line[: MAX_REASON - 3]}..."
    if line.isprintable():
        return line
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line
    )


def refusal(error: Exception) -> str:
    """Why an answer is not used: the text of our own errors, the class of any other."""
    if isinstance(error, ValueError) and type(error).__module__.startswith("vltune."):
        return shown(str(error))
    return f"its answer cannot be read ({type(error).__name__})"


def public_message(error: BaseException, private_paths: Iterable[Path] = ()) -> str:
    """What the server may know of a failure at a site.

    The class, and the text of our own errors without anything that looks like a path or a file. An
    error about the site's files also loses the values that it quotes and the numbers of entries.
    Texts of foreign errors may quote data, so they stay in the site's log; what the operating
    system says of memory, disk and files is told without the name of the file.

    Args:
        error: What was caught.
        private_paths: The site's own folders; what follows one of them goes too, spaces included.
    """
    name = type(error).__name__
    if is_out_of_memory(error):
        return f"{name}: out of memory at this site. Lower the batch size, or give it more memory."
    if isinstance(error, OSError) and error.errno is not None:
        return f"{name}: {os.strerror(error.errno)} (the site's own log has the file)"
    if not isinstance(error, ValueError) or not type(error).__module__.startswith("vltune"):
        return f"{name} (the site's own log has the text)"
    text = str(error)
    for path in sorted(map(str, private_paths), key=len, reverse=True):
        text = re.sub(re.escape(path) + r"[^:;,'\"\n]*", "<path>", text)
    text = _PATH.sub("<path>", text)
    if type(error).__module__.startswith(_ABOUT_DATA):
        text = _NUMBERED.sub(r"\1 <number>", _without_values(text))
    return shown(f"{name}: {text}"[:MAX_ERROR])


def _without_values(text: str) -> str:
    """End a text at its first quotation that is not a key of our own file formats.

    A value may hold quotation marks or be cut short: what follows the first cannot be told from it.
    """
    for found in _QUOTE.finditer(text):
        if found["word"] not in _KEYS:
            return f"{text[: found.start()]}<value> (the site's own log has the text)"
    return text


def is_out_of_memory(error: BaseException) -> bool:
    """Python's, torch's on a GPU (by its class) or torch's on a CPU (only its text tells)."""
    name = type(error).__name__
    return name in ("MemoryError", "OutOfMemoryError") or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _CPU_OUT_OF_MEMORY)
    )
