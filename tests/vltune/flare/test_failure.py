from pathlib import Path

import pytest
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import make_reply

from vltune.config import ConfigError
from vltune.data.coco import AnnotationError
from vltune.data.rows import RecordError
from vltune.flare.exchange import ExchangeError
from vltune.flare.failure import (
    HEADER_ERROR,
    MAX_REASON,
    error_of,
    public_message,
    refusal,
    shown,
)

ENDED = "<value> (the site's own log has the text)"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RecordError("/d/x.jsonl: line 7: key 'answer' is missing. Add it."),
            "RecordError: <path>: line 7: key 'answer' is missing. Add it.",
        ),
        (
            AnnotationError(
                "/d/x.json: images 4711 and 12 are both 'Anna \\' \" Smith'. Correct it."
            ),
            f"AnnotationError: <path>: images <number> and <number> are both {ENDED}",
        ),
        (
            AnnotationError("/d/x.json: the job's 3 classes: \"Smith's\" and 'dog'"),
            f"AnnotationError: <path>: the job's 3 classes: {ENDED}",
        ),
        (
            ConfigError("/d/x.yaml: expected int, got {'answer': 'Smi"),
            "ConfigError: <path>: expected int, got {'answer': " + ENDED,
        ),
    ],
)
def test_an_error_about_data_ends_before_the_first_value(error: ValueError, told: str) -> None:
    assert public_message(error, [Path("/d")]) == told


def test_what_a_site_says_is_one_printable_line() -> None:
    assert shown("a\nERROR  forged\x1b[2J") == "a ERROR forged\N{REPLACEMENT CHARACTER}[2J"
    assert shown("\ud800") == "\N{REPLACEMENT CHARACTER}"
    assert len(shown("x" * 10**6)) == MAX_REASON


def test_a_refusal_keeps_the_text_of_our_own_errors_alone() -> None:
    assert refusal(ExchangeError("site-1: no")) == "site-1: no"
    assert refusal(KeyError("patient")) == "its answer cannot be read (KeyError)"
    assert refusal(ValueError("patient")) == "its answer cannot be read (ValueError)"


def test_a_reason_that_is_no_text_is_not_looked_at() -> None:
    reply = make_reply(ReturnCode.EXECUTION_EXCEPTION, {HEADER_ERROR: [b"x"] * 9})
    assert error_of(reply) == "EXECUTION_EXCEPTION: no reason given; see the site's own log"
