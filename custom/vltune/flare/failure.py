"""What the server learns of a failure at a site: a return code and a text without paths or data."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from nvflare.apis.shareable import Shareable, make_reply

HEADER_ERROR = "vltune_error"
MAX_ERROR = 500
_CPU_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")

_PATH = re.compile(
    r"(?:[A-Za-z]:)?[\w.~{}-]*[/\\][^\s'\",;:)\]]*"
    r"|\b(?!vltune_site\.ya?ml\b)[\w-]+\.(?:jpe?g|png|bmp|tiff?|gif|webp|dcm|jsonl?|parquet|ya?ml|csv|npy|npz|safetensors|pth?|txt)\b"
)


def error_reply(return_code: str, message: str) -> Shareable:
    """Answer without content that carries a reason the server may show."""
    return make_reply(return_code, {HEADER_ERROR: message[:MAX_ERROR]})


def error_of(message: Shareable) -> str:
    """Return code and reason of a failed task."""
    reason = message.get_header(HEADER_ERROR, "")
    text = str(reason)[:MAX_ERROR] if reason else "no reason given; see the site's own log"
    return f"{message.get_return_code()}: {text}"


def public_message(error: BaseException, private_paths: Iterable[Path] = ()) -> str:
    """What the server may know of a failure at a site.

    The class, and the text of our own errors without anything that looks like a path or a file.
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
    return f"{name}: {_PATH.sub('<path>', text)}"[:MAX_ERROR]


def is_out_of_memory(error: BaseException) -> bool:
    """Python's, torch's on a GPU (by its class) or torch's on a CPU (only its text tells)."""
    name = type(error).__name__
    return name in ("MemoryError", "OutOfMemoryError") or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _CPU_OUT_OF_MEMORY)
    )
