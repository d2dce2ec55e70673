"""Small answer files with their images; written by tests, read by the data room."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(number: int, file_format: str = "PNG") -> bytes:
    """An image file whose content depends on `number`."""
    pixels = np.random.default_rng(number).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format)
    return buffer.getvalue()


def write_images(folder: Path, count: int, start: int = 0) -> None:
    """images/0.png ... below `folder`."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        (folder / "images" / f"{number}.png").write_bytes(picture(number))


def pair(number: int, **change: Any) -> dict[str, Any]:
    """A row of RLAIF-V about image `number`; a value None leaves its key out."""
    row = {
        "image": f"images/{number}.png",
        "question": "how many dogs?",
        "chosen": f"{number} dogs",
        "rejected": "no dogs",
    }
    return {key: value for key, value in (row | change).items() if value is not None}


def write_lines(path: Path, rows: list[Any]) -> Path:
    """JSON lines; a row that is text is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
