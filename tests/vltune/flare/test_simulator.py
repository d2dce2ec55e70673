"""The exported job under the real FLARE simulator."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vltune.flare.persistor import round_file
from vltune_lab.jobs.in_process import run_in_process
from vltune_lab.jobs.launch import make_recipe
from vltune_lab.jobs.simulate import SERVER_FOLDER, RunFailedError, simulate

pytestmark = pytest.mark.flare

NAMES = ("site-1", "site-2")
LIMIT_SECONDS = 240.0
ENVELOPE_BYTES = 2500
"""What FLARE adds to a message: headers, and the references of its download service."""

BLOCK_INSTALLED_COPY = """
import os, sys
sys.path[:] = [p for p in sys.path if not os.path.isdir(os.path.join(p, "vltune"))]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
"""


@pytest.fixture
def clean_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FLARE's processes see the method of the tests, and no vltune but the one in the job."""
    blocker = tmp_path / "blocker"
    blocker.mkdir()
    (blocker / "sitecustomize.py").write_text(BLOCK_INSTALLED_COPY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(blocker), str(Path(__file__).parent)]))
    probe = subprocess.run([sys.executable, "-c", "import vltune"], cwd=tmp_path, check=False)
    assert probe.returncode != 0


def run_exported(job: dict[str, Any], folder: Path, parallel: int = 2) -> Path:
    make_recipe(job).export(str(folder / "jobs"))
    return simulate(
        folder / "jobs" / job["name"],
        NAMES,
        folder / "workspace",
        parallel=parallel,
        on_round=lambda record: None,
        timeout_seconds=LIMIT_SECONDS,
    )


@pytest.mark.usefixtures("clean_path")
def test_a_robust_rule_acts_as_in_a_bare_loop(tmp_path: Path, sites: Any, job: Any) -> None:
    """Every update is longer than 0.05, so that both sites are clipped in both rounds."""
    sites()
    asked = job(federation={"robust": {"rule": "clip", "clip_norm": 0.05}})
    server = run_exported(asked, tmp_path)
    records = json.loads((server / "rounds.json").read_text())["rounds"]
    for record in records[1:]:
        treated = [(entry["site"], entry["action"]) for entry in record["robust"]]
        assert treated == [(site, "clipped") for site in NAMES]
    bare = run_in_process(asked, NAMES, tmp_path / "bare")
    assert (server / round_file(2)).read_bytes() == (bare / round_file(2)).read_bytes()


def states_of(folder: Path) -> list[Path]:
    return sorted((folder / "data of sites").glob("site-*/vltune_state/site-*/*"))


@pytest.mark.usefixtures("clean_path")
def test_the_export_is_self_contained_and_changes_no_bit(
    tmp_path: Path, sites: Any, job: Any
) -> None:
    """The simulator without an installed vltune, and a bare loop in this process: equal bytes."""
    sites()
    server = run_exported(job(federation={"tensorboard": True}), tmp_path)
    folders = states_of(tmp_path)
    assert len(folders) == 2
    for folder in folders:
        assert "/app_site-" in (folder / "package.txt").read_text()
        assert (folder / "tasks.txt").read_text().count("built") == 1

    loop = run_in_process(job(), NAMES, tmp_path / "loop")
    for number in range(3):
        name = round_file(number)
        assert (server / name).read_bytes() == (loop / name).read_bytes()

    state = json.loads((server / "rounds.json").read_text())
    check_bytes(tmp_path / "workspace", state)
    events = sorted(path.parent.name for path in server.parent.glob("tb_events/*/events*"))
    assert {"site-1", "site-2"} < set(events)


def check_bytes(workspace: Path, state: dict[str, Any]) -> None:
    """Recorded bytes are those the site let out; FLARE's own count differs by its envelope only."""
    for site in NAMES:
        log = (workspace / site / "log.txt").read_text()
        let_out = [int(size) for size in re.findall(r"(\d+) bytes leave this site", log)]
        recorded = [
            state["bytes_prepare"]["up"][site],
            *(record["bytes_up"][site] for record in state["rounds"][1:]),
            state["bytes_validate"]["up"][site],
        ]
        assert recorded == let_out
        messages = [int(size) for size in re.findall(r"SubmitUpdate to.*\((\d+) Bytes\)", log)]
        streams = re.findall(r"download tx .* done: .*\(([\d,]+) bytes\)", log)
        sent = sum(messages) + sum(int(size.replace(",", "")) for size in streams)
        assert 0 < sent - sum(recorded) < ENVELOPE_BYTES * len(recorded)


@pytest.mark.usefixtures("clean_path")
def test_a_process_for_every_task_gives_the_same_adapter(
    tmp_path: Path, sites: Any, job: Any
) -> None:
    sites()
    server = run_exported(job(), tmp_path, parallel=1)
    for folder in states_of(tmp_path):
        assert (folder / "tasks.txt").read_text().count("built") > 1
    loop = run_in_process(job(), NAMES, tmp_path / "loop")
    assert (server / round_file(2)).read_bytes() == (loop / round_file(2)).read_bytes()


@pytest.mark.usefixtures("clean_path")
def test_a_dead_site_process_does_not_hang_the_run(tmp_path: Path, sites: Any, job: Any) -> None:
    """site-2's process ends in round 0; the quorum of one goes on without it."""
    sites()
    federation = {"min_sites": 1, "round_timeout_seconds": 8.0}
    trouble = {"site-2": [0, "exit"]}
    server = run_exported(job(federation=federation, trouble=trouble), tmp_path)
    state = json.loads((server / "rounds.json").read_text())
    assert state["status"] == "completed"
    assert [entry["site"] for entry in state["rounds"][1]["rejected"]] == ["site-2"]
    assert "no answer within 8 s" in state["rounds"][1]["rejected"][0]["reason"]


@pytest.mark.usefixtures("clean_path")
def test_a_missed_quorum_ends_the_job_with_the_cause(tmp_path: Path, sites: Any, job: Any) -> None:
    sites()
    began = time.monotonic()
    with pytest.raises(RunFailedError, match=r"1 of 2 updates accepted.*site-2: .*RuntimeError"):
        run_exported(job(trouble={"site-2": [1, "raise"]}), tmp_path)
    assert time.monotonic() - began < LIMIT_SECONDS
    assert (tmp_path / "workspace" / SERVER_FOLDER / round_file(1)).exists()
