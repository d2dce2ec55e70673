import json
import os
from pathlib import Path

import pytest

from vltune.files import OutputError
from vltune.flare.run_log import METRICS_FILE, RESERVE_BYTES, RESERVE_FILE, STATE_FILE, RunLog


def test_lines_are_whole_json_and_nan_becomes_null(tmp_path: Path) -> None:
    log = RunLog(tmp_path, {"job": "linear"})
    log.site_metrics(3, "validation", {"b": {"mAP": float("nan")}, "a": {"mAP": 0.5, "CF1": 0.25}})
    log.round_line({"round": 3, "mAP": 0.5, "loss": float("nan")})
    lines = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    line = {"round": 3, "split": "validation"}
    assert lines == [
        {"site": "a", "metric": "CF1", "value": 0.25} | line,
        {"site": "a", "metric": "mAP", "value": 0.5} | line,
        {"site": "b", "metric": "mAP", "value": None} | line,
        {"event": "round", "round": 3, "mAP": 0.5, "loss": None},
    ]


def test_the_state_is_always_readable(tmp_path: Path) -> None:
    log = RunLog(tmp_path, {"job": "linear"})
    state = json.loads((tmp_path / STATE_FILE).read_text())
    assert (state["status"], state["rounds"], state["job"]) == ("running", [], "linear")
    log.phase("rounds", 1.5)
    log.phase("rounds", 0.25)
    log.update(status="failed", reason="quorum")
    state = json.loads((tmp_path / STATE_FILE).read_text())
    assert (state["status"], state["reason"], state["phases"]) == (
        "failed",
        "quorum",
        {"rounds": 1.75},
    )


def test_a_line_that_does_not_fit_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system writes half of it, as it does on a full disk."""
    log = RunLog(tmp_path, {"job": "linear"})
    log.round_line({"round": 0})
    whole, write = (tmp_path / METRICS_FILE).read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda handle, content: write(handle, content[:5]))
    with pytest.raises(OutputError, match="No space left"):
        log.round_line({"round": 1})
    assert (tmp_path / METRICS_FILE).read_bytes() == whole


def test_the_end_has_room_of_its_own(tmp_path: Path) -> None:
    log = RunLog(tmp_path, {"job": "linear"})
    assert (tmp_path / RESERVE_FILE).stat().st_size == RESERVE_BYTES
    log.end(status="failed", reason="no space")
    assert not (tmp_path / RESERVE_FILE).exists()
    assert json.loads((tmp_path / STATE_FILE).read_text())["reason"] == "no space"
