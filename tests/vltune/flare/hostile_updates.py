"""Answers of a hostile site: a valid message, changed at random in one to three places.

The same seed gives the same messages. A message travels as Python objects, or as the bytes that
FLARE serialises, which may be changed too. What must never happen on the way is that the canary
file appears: several mutations are code for whoever unpickles, imports or calls what he receives.
"""

import copy
import math
import pickle
import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvflare.apis.dxo import MetaKey
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.decomposers import numpy_decomposers
from nvflare.fuel.utils import fobs

from vltune.flare.exchange import evaluation_reply, handshake_reply, update_reply
from vltune.flare.failure import HEADER_ERROR
from vltune.histograms import score_histograms
from vltune.parameters import LocalUpdate, spec_of
from vltune.participant import Evaluation, Handshake

SHAPES = {"bias": (3,), "weight": (2, 3)}
EXAMPLES = 7
ROUND = 4
DEPTH = 400
"""Of nested lists and mappings; msgpack refuses more than 511 to 1024."""

DTYPES = (
    "f2", "f4", "f8", "g", ">f4", ">f8", "i1", "i4", "i8", "u1", "u8", ">i4", "?", "c8",
    "c16", "S3", "U3", "M8[s]", "m8[s]", "V5", "O",
)  # fmt: skip
WORDS = (
    "",
    "a\nb ERROR forged line",
    "\x00\x1b[2J",
    "\ud800",
    "x" * 100_000,
    "../../etc/passwd",
    "base_model.model.a.lora_A.weight",
    "weight ",
    "WEIGHT",
    "__fobs_type__",
    "__class__",
)


class Rogue:
    """Says no to whatever is asked of it."""

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError("rogue")

    __hash__ = None  # type: ignore[assignment] # on purpose

    def __str__(self) -> str:
        raise ZeroDivisionError("rogue")

    __repr__ = __len__ = __iter__ = __float__ = __int__ = __index__ = __bool__ = __str__


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return subprocess.call, (["touch", str(self.canary)],)


@dataclass(frozen=True)
class Mutant:
    """A message as it arrives, and what was done to it."""

    message: Any
    story: str


def honest_update(value: float = 0.5, examples: int = EXAMPLES) -> Shareable:
    """A valid answer to `train`."""
    generator = np.random.default_rng(3)
    labels = (generator.random((29, 2)) < 0.4).astype(np.int8)
    histograms = score_histograms(generator.random((29, 2)), labels, min_interval=3)
    tensors = {name: torch.full(shape, value) for name, shape in SHAPES.items()}
    metrics = {"loss": 0.5, "mAP": 0.25, "seconds_task": 1.0, "steps": 3.0}
    return update_reply(LocalUpdate(tensors, examples, metrics, histograms.to_tensors()), ROUND)


def honest_handshake() -> Shareable:
    """A valid answer to `prepare`."""
    initial = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    facts = {"vltune": "0.1.0", "class_list": "a" * 64}
    handshake = Handshake(spec_of(initial), initial, "f" * 64, EXAMPLES, 5, facts)
    return handshake_reply(handshake, {"seconds_prepare": 0.25})


def honest_evaluation() -> Shareable:
    """A valid answer to `validate`."""
    return evaluation_reply(Evaluation({"mAP": 0.25, "test_accuracy": 0.5}), ROUND)


class Mutator:
    """Makes mutants of `base`; `canary` is the file that must not appear."""

    def __init__(self, seed: int, canary: Path, base: Shareable | None = None) -> None:
        self.random = random.Random(seed)
        self.code = pickle.dumps(Payload(canary))
        self.canary = canary
        self.is_vast = False
        self.base = honest_update() if base is None else base
        self.changes: tuple[Callable[[Any], str], ...] = (
            self._value,
            self._value,
            self._array,
            self._array,
            self._key,
            self._header,
            self._meta,
            self._histogram,
            self._harmless,
        )

    def mutant(self) -> Mutant:
        """The next message."""
        message = copy.deepcopy(self.base)
        story = [
            self.random.choice(self.changes)(message) for _ in range(self.random.randint(1, 3))
        ]
        if self.random.random() < 0.5 or self.is_vast:
            self.is_vast = False
            return Mutant(message, "; ".join(story))
        numpy_decomposers.register()
        try:
            raw = fobs.dumps(message)
        except Exception:  # noqa: BLE001 - only Python can carry it
            return Mutant(message, "; ".join(story))
        if self.random.random() < 0.5:
            raw = self._bytes(raw)
            story.append("bytes changed")
        try:
            return Mutant(fobs.loads(raw), "; ".join([*story, "over the wire"]))
        except Exception as error:  # noqa: BLE001 - FLARE refuses it; the server gets nothing
            return Mutant(None, f"{story} {type(error).__name__}")

    def _hostile(self) -> Any:
        """One value that nobody asked for."""
        pick = self.random.choice
        nested: Any = 1
        for _ in range(DEPTH):
            nested = [nested] if self.random.random() < 0.5 else {"a": nested}
        return pick(
            (
                None, True, -1, 0, 2**31, 2**63, 10**400, -1e308, 1e-320, math.nan, math.inf,
                pick(WORDS), pick(WORDS), b"", self.code, Payload(self.canary), Rogue(), Rogue, {},
                [], (), {1: 2}, {pick(WORDS): 1.0}, nested, {1, 2}, len, np.float32(3), np.int64(7),
                np.bool_(True), self._strange_array(), {"__fobs_type__": "os.system",
                "__fobs_data__": f"touch {self.canary}", "__fobs_dc__": "builtins.eval"},
                {"__fobs_type__": "pickle.Unpickler", "__fobs_data__": self.code}, 7.0, "7",
            )
        )  # fmt: skip

    def _strange_array(self) -> Any:
        pick = self.random.choice
        shape = pick(((), (0,), (3,), (2, 3), (3, 2), (1,) * 20, (5000,), (1, 3)))
        if self.random.random() < 0.1:
            return np.ma.masked_array(np.ones(shape, np.float32))
        array = np.ones(shape, np.float32)
        try:
            return array.astype(pick(DTYPES))
        except TypeError:
            return array

    def _nodes(self, node: Any) -> list[tuple[Any, Any]]:
        """Every (mapping, key) of the message."""
        if not isinstance(node, dict):
            return []
        found = [(node, key) for key in node]
        for key, value in node.items():
            found += self._nodes(value) if key != "a" else []
        return found

    def _value(self, message: Any) -> str:
        mapping, key = self.random.choice(self._nodes(message))
        mapping[key] = self._hostile()
        return f"{key!r:.40} replaced"

    def _key(self, message: Any) -> str:
        nodes = self._nodes(message)
        mapping, key = self.random.choice(nodes)
        deed = self.random.choice(("drop", "add", "rename", "flood"))
        if deed in ("drop", "rename"):
            kept = mapping.pop(key)
        if deed == "rename":
            mapping[self.random.choice(WORDS)] = kept
        if deed == "add":
            mapping[self.random.choice((*WORDS, 5, None, b"k", True))] = self._hostile()
        if deed == "flood" and self.random.random() < 0.2:
            mapping.update({f"{key}{n}": 1.0 for n in range(5000)})
        return f"{deed} {key!r:.40}"

    def _tensors(self, message: Any) -> dict[str, Any]:
        content = message.get("DXO")
        data = content.get("data") if isinstance(content, dict) else None
        return data if isinstance(data, dict) else {}

    def _array(self, message: Any) -> str:
        data = self._tensors(message)
        name = self.random.choice(sorted(SHAPES))
        deed = self.random.randrange(7)
        array = np.full(SHAPES[name], 0.25, np.float32)
        if deed == 0:
            array[..., 0] = self.random.choice((np.nan, np.inf, -np.inf, 3e38, 1e-45, 900.0, 1e3))
        elif deed == 1:
            array = self._strange_array()
        elif deed == 2:
            array = np.asfortranarray(array)
        elif deed == 3:
            array = array[..., ::-1]
        elif deed == 4:
            array.setflags(write=False)
        elif deed == 5:  # 40 GB to whoever copies it; only Python can carry it
            self.is_vast = True
            array = np.broadcast_to(np.float32(0.5), (100_000, 100_000))
        else:
            array = array.astype(self.random.choice(DTYPES[:14]))
        data[name] = array
        return f"{name}: array {deed} {getattr(array, 'dtype', '')}"

    def _header(self, message: Any) -> str:
        name = self.random.choice(
            (ReservedHeaderKey.RC, ReservedHeaderKey.CONTENT_TYPE, AppConstants.CURRENT_ROUND,
             AppConstants.SUBMIT_MODEL_NAME, AppConstants.NUM_ROUNDS, HEADER_ERROR,
             MetaKey.JOB_ID, MetaKey.SITE_NAME)
        )  # fmt: skip
        value = self._hostile()
        headers = message.get("__headers__")
        if isinstance(headers, dict):
            headers[name] = value
        return f"header {name}"

    def _meta(self, message: Any) -> str:
        content = message.get("DXO")
        meta = content.get("meta") if isinstance(content, dict) else None
        name = self.random.choice(
            ("num_examples", "histograms", "client_name", "handshake", MetaKey.INITIAL_METRICS,
             MetaKey.PROCESSED_ALGORITHM, MetaKey.FILTER_HISTORY)
        )  # fmt: skip
        if isinstance(meta, dict):
            meta[name] = self._hostile()
        return f"meta {name}"

    def _histogram(self, message: Any) -> str:
        content = message.get("DXO")
        meta = content.get("meta") if isinstance(content, dict) else None
        histograms = meta.get("histograms") if isinstance(meta, dict) else None
        if not isinstance(histograms, dict) or not histograms:
            return "no histogram left"
        name = self.random.choice(sorted(map(str, histograms)))
        old = histograms.get(name)
        array = np.array(old) if isinstance(old, np.ndarray) and old.size else np.zeros(3, np.int32)
        if array.dtype == np.int32:
            array.flat[self.random.randrange(array.size)] = self.random.choice(
                (-1, 0, 1, 2, 2**30, 2**31 - 1, -(2**31))
            )
        histograms[name] = array
        return f"histogram {name}"

    def _harmless(self, message: Any) -> str:
        data = self._tensors(message)
        data["bias"] = np.full(SHAPES["bias"], self.random.uniform(-5, 5), np.float32)
        return "another bias"

    def _bytes(self, raw: bytes) -> bytes:
        changed = bytearray(raw)
        for _ in range(self.random.randint(1, 4)):
            place = self.random.randrange(len(changed))
            deed = self.random.randrange(4)
            if deed == 0:
                changed[place] ^= 1 << self.random.randrange(8)
            elif deed == 1:
                del changed[place:]
            elif deed == 2:
                changed[place:place] = changed[place : place + self.random.randint(1, 40)]
            else:  # a length field that promises four gigabytes
                changed[place : place + 5] = self.random.choice(
                    (b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff")
                )
            if not changed:
                return b"\xc0"
        return bytes(changed)
