"""The real FedMPT job on a real POC: processes, certificates, submit, follow, download."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from vltune.config import from_mapping
from vltune.flare.persistor import round_file
from vltune_lab.jobs.collect import ADAPTERS
from vltune_lab.jobs.in_process import run_in_process
from vltune_lab.jobs.kinds import FEDMPT
from vltune_lab.jobs.resolve import resolve_job
from vltune_lab.report.summary import load_summary
from vltune_lab.scenes.make import make_world
from vltune_lab.scenes.world import WorldConfig

pytestmark = pytest.mark.flare

ROOT = Path(__file__).parents[3]
SITES = ("site-1", "site-2")
LIMIT_SECONDS = 120.0
OVERRIDES = ["federation.rounds=2", "training.local_epochs=1"]


def run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        timeout=LIMIT_SECONDS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def nvflare(*arguments: str | Path) -> None:
    run(Path(sys.executable).with_name("nvflare"), *arguments)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processes_below(folder: Path) -> list[int]:
    """Processes whose command line names the workspace: FLARE's parents and job processes."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder) in entry.read_bytes().decode(errors="replace"):
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sites of the scene world, with a global test set."""
    sites = [
        {"name": name, "styles": ["twemoji"], "scenes": {"park": 1}, "train": 24, "validation": 16}
        for name in SITES
    ]
    config = {"seed": 3, "sites": sites, "test": 16, "test_styles": ["twemoji"], "shifted": 0}
    make_world(from_mapping(WorldConfig, config, "world"), tmp_path / "world")
    for path in (tmp_path / "world").glob("site-*/vltune_site.yaml"):
        path.write_text(path.read_text() + "threads: 1\n")  # bits depend on the number of threads
    pattern = tmp_path / "world" / "{site}" / "vltune_site.yaml"
    monkeypatch.setenv("VLTUNE_SITE_CONFIG", str(pattern))
    monkeypatch.setenv("VLTUNE_GLOBAL_TEST", str(tmp_path / "world" / "global" / "test"))
    return tmp_path / "world"


@pytest.fixture
def poc(tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The project of poc_workspace/ with two sites and a free port, started; ended afterwards."""
    project = yaml.safe_load((ROOT / "poc_workspace/project.yml").read_text())
    left_out = {"site-3", "site-4"}
    project["participants"] = [p for p in project["participants"] if p["name"] not in left_out]
    project["participants"][0]["fed_learn_port"] = free_port()
    path = tmp_path / "project.yml"
    path.write_text(yaml.safe_dump(project))
    workspace = tmp_path / "poc"
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NVFLARE_POC_WORKSPACE", str(workspace))
    nvflare("poc", "prepare", "-i", path)
    nvflare("poc", "start")
    try:
        yield workspace
    finally:
        nvflare("poc", "stop")
        until = time.monotonic() + 30
        while (left := processes_below(workspace)) and time.monotonic() < until:
            time.sleep(0.2)
        for pid in left:
            os.kill(pid, signal.SIGKILL)


@pytest.mark.usefixtures("poc")
def test_poc_trains_what_a_bare_loop_trains(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    arguments = ["--env", "poc", "--out", out, "--name", "poc"]
    arguments += [part for override in OVERRIDES for part in ("--set", override)]
    told = run(sys.executable, "jobs/fedmpt/job.py", *arguments)
    assert "FLARE job" in told
    assert told.count("round ") >= 2
    summary = load_summary(out / "poc")
    assert (summary.environment, summary.rounds) == ("poc", 2)
    assert {site.site for site in summary.per_site} == set(SITES)
    assert summary.global_mAP is not None
    assert (out / "poc" / "report.html").exists()
    assert not summary.rejected_updates

    job = resolve_job(FEDMPT, OVERRIDES)
    server = run_in_process(job, SITES, tmp_path / "loop")
    for number in range(2):
        name = round_file(number + 1)
        assert (out / "poc" / ADAPTERS / name).read_bytes() == (server / name).read_bytes()
