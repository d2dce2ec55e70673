"""Bytes that are made to hurt whoever reads them, and ways to spoil good ones."""

import io
import pickle
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import torch


class Canary:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes with an honest checksum and a huge size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 100_000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


YAML_BOMB = b"a: &a [x, x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (c, c, b", ".join([b"*%c" % (c - 1)] * 10)) for c in range(98, 108)
) + b"data: *k\nrounds: *k\nsite: *k\n"  # fmt: skip
MERGE_BOMB = b"a: &a {x: 1, y: 1}\n" + b"".join(
    b"%c: &%c {<<: [%s]}\n" % (c, c, b", ".join([b"*%c" % (c - 1)] * 10)) for c in range(98, 108)
)


def header_only(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


def bombs(canary: Path) -> dict[str, bytes]:
    """Files that are made to hurt, whatever is expected there."""
    tensor = b'{"bias": {"dtype": "F32", "shape": [%s], "data_offsets": [0, %d]}}'
    return {
        "nothing": b"",
        "null": b"null",
        "zero bytes": b"\0" * 1000,
        "not UTF-8": b"\xff\xfe{",
        "brackets": b"[" * 200_000,
        "braces": b'{"a":' * 200_000,
        "yaml dashes": b"- " * 50_000,
        "yaml flow": b"{a: " * 20_000,
        "yaml aliases": YAML_BOMB,
        "yaml merges": MERGE_BOMB,
        "yaml in itself": b"&a [*a]",
        "yaml mapping in itself": b"train: &a {images: *a}",
        "yaml code": b"!!python/object/apply:os.system ['touch " + bytes(canary) + b"']",
        "yaml date": b"site: 2020-13-45",
        "yaml list as key": b"? [1, 2]\n: 3",
        "large number": b'{"rounds": 1e999, "min_sites": ' + b"9" * 4000 + b"}",
        "larger number": b"rounds: " + b"9" * 10_000,
        "long line": b'{"a": "' + b"x" * 3_000_000 + b'"}',
        "pickle": pickle.dumps(Canary(canary)),
        "torch pickle": torch_pickle(canary),
        "10^9 numbers": header_only(tensor % (b"1000000000", 4 * 10**9)),
        "2^62 x 4 numbers": header_only(tensor % (b"4611686018427387904, 4", 0)),
        "header of 2^60 bytes": struct.pack("<Q", 2**60) + b"{}",
        "header that is no mapping": header_only(b"[]"),
        "no header": header_only(b"{}"),
        "metadata of null": header_only(b'{"__metadata__": {"vltune": "null"}}'),
        "metadata in depth": header_only(
            b'{"__metadata__": {"vltune": "' + b"[" * 100_000 + b'"}}'
        ),
        "unknown type": header_only(tensor.replace(b"F32", b"F4") % (b"8", 4)) + b"\0" * 4,
        "picture of 10^12 pixels": png_that_claims(10**6, 10**6),
        "picture of 10^9 pixels": png_that_claims(40_000, 25_000),
    }


def torch_pickle(canary: Path) -> bytes:
    stream = io.BytesIO()
    torch.save({"weight": Canary(canary)}, stream)
    return stream.getvalue()


def mutated(content: bytes, dice: random.Random) -> bytes:
    """Change text by structure, half of the time, and bytes anywhere."""
    words = (
        b"null", b"-1", b"1e999", b"[]", b"{}", b'"\\ud800"', b'"\\u0000"', b"NaN", b"true", b'""',
        b"'~nobody/x'", b'"../../x"', b"99999999999999999999", b"*a", b"&a", b"!!binary", b"<<",
        b"2020-13-45", b"0x", b"1:99:99", b"? ", b"\t", b"\xff", b"\r", b"%s%n",
    )  # fmt: skip
    changed = bytearray(content)
    for _ in range(dice.randint(1, 3)):
        place = dice.randrange(len(changed) + 1)
        deed = dice.randrange(6)
        if deed == 0 and place < len(changed):
            changed[place] ^= 1 << dice.randrange(8)
        elif deed == 1:
            del changed[place : place + dice.randint(1, 20)]
        elif deed == 2:
            changed[place:place] = changed[place : place + dice.randint(1, 30)]
        elif deed == 3:
            changed[place:place] = dice.choice(words)
        else:  # a whole value
            ends = [n for n, byte in enumerate(changed) if byte in b":,[]{}\n"]
            if len(ends) > 1:
                start = dice.randrange(len(ends) - 1)
                changed[ends[start] + 1 : ends[start + 1]] = b" " + dice.choice(words)
    return bytes(changed)
