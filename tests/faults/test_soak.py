"""Five hundred rounds of the tiny job under FLARE's simulator: no process may grow for ever."""

import json
import os
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pytest
from linear_site import make_job, write_site

from vltune_lab.jobs.launch import make_recipe
from vltune_lab.jobs.simulate import simulate

pytestmark = pytest.mark.soak

SITES = ("site-1", "site-2")
ROUNDS = int(os.environ.get("VLTUNE_SOAK_ROUNDS", "500"))
SETTLED = ROUNDS // 10
WINDOW = max(1, ROUNDS // 50)
MAX_GROWTH = 0.05
MEGABYTE = 1 << 20


def memory() -> dict[str, float]:
    """Resident megabytes of the simulator (the server) and of each site's process."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            line, size = process.cmdline(), process.memory_info().rss / MEGABYTE
        except psutil.NoSuchProcess:
            continue
        name = next((site for site in SITES if site in line and "--client" in line), "server")
        found[name] = max(size, found.get(name, 0.0))
    return found


def test_memory_settles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index, name in enumerate(SITES):
        write_site(tmp_path / "data" / name, name, 17, seed=index)
    monkeypatch.setenv("VLTUNE_SITE_CONFIG", str(tmp_path / "data/{site}/vltune_site.yaml"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "vltune/flare"))
    federation = {"rounds": ROUNDS, "poll_seconds": 0.02}
    make_recipe(make_job(federation=federation)).export(str(tmp_path / "jobs"))
    samples: list[dict[str, Any]] = []
    server = simulate(
        tmp_path / "jobs/linear",
        SITES,
        tmp_path / "workspace",
        parallel=len(SITES),
        on_round=lambda record: samples.append({"round": record["round"], **memory()}),
    )
    (tmp_path / "memory.json").write_text(json.dumps(samples))
    assert json.loads((server / "rounds.json").read_text())["completed_rounds"] == ROUNDS
    for name in ("server", *SITES):
        sizes = {entry["round"]: entry[name] for entry in samples if name in entry}
        settled = median(sizes[n] for n in sizes if abs(n - SETTLED) <= WINDOW)
        late = median(sizes[n] for n in sizes if ROUNDS - 2 * WINDOW <= n < ROUNDS)
        growth = late / settled - 1
        print(f"{name}: {settled:.1f} MB at {SETTLED}, {late:.1f} MB at {ROUNDS}: {growth:+.1%}")  # noqa: T201
        assert growth < MAX_GROWTH, (name, settled, late)
