"""The matrix's row of FLARE's simulator, which by itself waits for dead sites for ever."""

import time
from pathlib import Path
from typing import Any

import pytest
from linear_site import make_job, write_site

from vltune_lab.jobs.launch import make_recipe
from vltune_lab.jobs.simulate import RunFailedError, simulate

pytestmark = pytest.mark.faults

SITES = ("site-1", "site-2")


def test_a_dying_site_ends_the_simulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measure: Any
) -> None:
    for index, name in enumerate(SITES):
        write_site(tmp_path / "data" / name, name, 17, seed=index)
    monkeypatch.setenv("VLTUNE_SITE_CONFIG", str(tmp_path / "data/{site}/vltune_site.yaml"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "vltune/flare"))
    federation = {"round_timeout_seconds": 5.0}
    job = make_job(trouble={"site-2": [1, "exit"]}, federation=federation)
    make_recipe(job).export(str(tmp_path / "jobs"))
    began = time.monotonic()
    with pytest.raises(RunFailedError, match=r"1 of 2 updates accepted.*site-2: no answer"):
        simulate(
            tmp_path / "jobs/linear",
            SITES,
            tmp_path / "workspace",
            parallel=2,
            on_round=lambda record: None,
        )
    measure("simulator, site dies: from start to end", time.monotonic() - began)
