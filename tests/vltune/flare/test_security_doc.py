"""docs/security.md lists what leaves a site; this is the list again, made from the code."""

import re
from pathlib import Path
from typing import Any

import torch

from vltune.flare import filters
from vltune.flare.allow_list import (
    HANDSHAKE_KEYS,
    SITE_FACTS,
    SITE_HISTOGRAMS,
    SITE_METRICS,
    TASK_COSINES,
    TRAIN_METRICS,
)
from vltune.flare.exchange import evaluation_reply, handshake_reply, payload_bytes, update_reply
from vltune.flare.failure import MAX_ERROR
from vltune.parameters import LocalUpdate
from vltune.participant import Evaluation, Handshake

DOCUMENT = Path(__file__).parents[3] / "docs" / "security.md"
ARRAY, LONG_NAME = 275, 32
EMPTY = {"prepare": 308, "train": 201, "validate": 170}


def metric_bytes(name: str) -> int:
    """Name, its length, and eight bytes with their type."""
    return len(name) + (10 if len(name) < LONG_NAME else 11)


def table() -> str:
    """The table as it must stand in the document."""
    rows = [
        ("each shared tensor", "prepare, train", f"{ARRAY} + its name + 4 a number"),
        *((f"`{n}`", "train, validate", f"{ARRAY + len(n)} + 4 a count, as histogram")
          for n in sorted(SITE_HISTOGRAMS)),
        ("`num_examples`", "train", "in the empty answer; 1 to 4 more where it is large"),
        *((f"`{n}`", "prepare", "in the empty answer" + ("" if n == "facts" else "; see below"))
          for n in sorted(HANDSHAKE_KEYS)),
        *((f"`{n}`", "prepare, as fact", f"{len(n) + 2} + its text, at most 8192")
          for n in sorted(SITE_FACTS)),
        *((f"`{n}`", "train" if n in TRAIN_METRICS else
           "prepare" if n == "seconds_prepare" else "train, validate", f"{metric_bytes(n)}")
          for n in sorted(SITE_METRICS - TASK_COSINES | {"task_cosine"})),
        ("`task_cosine_1` to `task_cosine_199`", "train", "23 to 25"),
        ("return code and text of a failure", "all, in place of the answer",
         f"at most {MAX_ERROR} characters of text"),
    ]  # fmt: skip
    lines = ["| what | in the answer to | bytes |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def test_the_document_lists_what_the_code_lets_out_and_nothing_else() -> None:
    found = re.search(r"<!-- what leaves -->\n(.*?)\n<!-- end -->", DOCUMENT.read_text(), re.S)
    assert found
    assert found[1] == table(), f"docs/security.md must have:\n{table()}"


def update(tensors: Any = None, metrics: Any = None, histograms: Any = None) -> int:
    sent = LocalUpdate(tensors or {}, 7, metrics or {}, histograms or {})
    return payload_bytes(update_reply(sent, 0))


def test_the_bytes_are_those_of_real_messages() -> None:
    """Measured on what FLARE serialises, each part alone."""
    handshake = Handshake({}, {}, "f" * 64, 5, 7, {})
    empty = update()
    assert empty == EMPTY["train"]
    assert payload_bytes(handshake_reply(handshake, {})) == EMPTY["prepare"]
    assert payload_bytes(evaluation_reply(Evaluation({}, {}), 0)) == EMPTY["validate"]
    assert update({"weight": torch.zeros(7, 3)}) - empty == ARRAY + len("weight") + 4 * 21
    for name in SITE_METRICS:
        assert update(metrics={name: 0.5}) - empty == metric_bytes(name)
    for name in SITE_HISTOGRAMS:
        vector = torch.zeros(10, dtype=torch.int32)
        assert update(histograms={name: vector}) - empty == ARRAY + len(name) + 40
    told = Handshake({}, {}, "f" * 64, 5, 7, {"vltune": "0.1.0"})
    more = payload_bytes(handshake_reply(told, {})) - EMPTY["prepare"]
    assert more == len("vltune") + 2 + len("0.1.0")


def test_every_part_of_an_answer_is_on_one_of_the_lists() -> None:
    """The filter's own lists are those of the document, FLARE's names aside."""
    named = {filters.META_METRICS, filters.META_EXAMPLES, filters.META_HISTOGRAMS}
    flares = filters._META - named - {filters.META_HANDSHAKE}
    assert flares == {filters.MetaKey.FILTER_HISTORY}
    text = DOCUMENT.read_text()
    assert all(f"`{name}`" in text for name in sorted(filters._HEADERS | flares))
