"""A damaged Parquet file is read, or refused by name; pyarrow's own exceptions stay inside."""

import io
import random
from pathlib import Path

import pytest
from PIL import Image

from vltune.data.captions import load_captions

pq = pytest.importorskip("pyarrow.parquet")
pa = pytest.importorskip("pyarrow")


def valid() -> bytes:
    pictures = []
    for side in (8, 9):
        stream = io.BytesIO()
        Image.new("RGB", (side, side)).save(stream, "PNG")
        pictures.append(stream.getvalue())
    table = pa.table({"image": pictures, "prompt": ["what?", "who?"], "answer": ["a", "b"]})
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="none")
    return stream.getvalue()


def damaged(content: bytes, dice: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(len(changed))
        if dice.random() < 0.7:
            changed[place] ^= 1 << dice.randrange(8)
        elif dice.random() < 0.5:
            del changed[place : place + dice.randint(1, 9)]
        else:
            changed[place:place] = changed[place : place + 9]
    return bytes(changed)


def test_damaged_parquet_files(tmp_path: Path) -> None:
    dice, path, content = random.Random(3), tmp_path / "rows.parquet", valid()
    refused = 0
    for _ in range(400):
        path.write_bytes(damaged(content, dice))
        told: ValueError | None = None
        try:
            load_captions([path])
        except ValueError as error:
            told = error
        if told is not None:
            assert type(told).__module__.startswith("vltune.data."), repr(told)
            assert path.name in str(told)
            refused += 1
    assert refused > 40
