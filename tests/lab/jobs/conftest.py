"""A job of the linear method of tests/vltune/flare, as a YAML file that `launch` reads."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

FLARE_TESTS = Path(__file__).parents[2] / "vltune" / "flare"
sys.path.append(str(FLARE_TESTS))

from linear_site import make_job, write_site  # noqa: E402 - found through the path above

from vltune_lab.jobs.resolve import JobKind  # noqa: E402 - after the path is set

Kind = Callable[..., JobKind]


@pytest.fixture
def kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kind:
    """Write two sites and the YAML of a job; keywords change it."""
    for index, name in enumerate(("site-1", "site-2")):
        write_site(tmp_path / "data" / name, name, 17 + 6 * index, seed=index)
    monkeypatch.setenv("VLTUNE_SITE_CONFIG", str(tmp_path / "data/{site}/vltune_site.yaml"))
    monkeypatch.setenv("PYTHONPATH", str(FLARE_TESTS))

    def make(**changes: Any) -> JobKind:
        job = make_job(**changes)
        job["method"] = job.pop("participant")
        path = tmp_path / "linear.yaml"
        path.write_text(yaml.safe_dump(job))
        return JobKind("Linear", path)

    return make
