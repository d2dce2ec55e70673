"""What the server learns of a failure at a site: a return code and a text without paths or data."""

import re
from collections.abc import Iterable
from pathlib import Path

from nvflare.apis.shareable import Shareable, make_reply

HEADER_ERROR = "vltune_error"
MAX_ERROR = 500

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
    Texts of foreign errors may quote data, so they stay in the site's log.

    Args:
        error: What was caught.
        private_paths: The site's own folders; what follows one of them goes too, spaces included.
    """
    name = type(error).__name__
    if not isinstance(error, ValueError) or not type(error).__module__.startswith("vltune"):
        return f"{name} (the site's own log has the text)"
    text = str(error)
    for path in sorted(map(str, private_paths), key=len, reverse=True):
        text = re.sub(re.escape(path) + r"[^:;,'\"\n]*", "<path>", text)
    return f"{name}: {_PATH.sub('<path>', text)}"[:MAX_ERROR]
