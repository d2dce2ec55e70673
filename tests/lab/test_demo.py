import io
from pathlib import Path

import pytest
from rich.console import Console

from vltune.site_config import VARIABLE as SITE_VARIABLE
from vltune_lab.bench.fedmpt_demo import run_fedmpt_demo
from vltune_lab.bench.results import validate_results
from vltune_lab.jobs.global_test import VARIABLE as GLOBAL_VARIABLE


@pytest.mark.flare
def test_demo_trains_measures_and_reports_and_a_seed_gives_the_same_bits_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The benchmark's quick mode: real world, real checkpoint, FLARE's simulator, one round."""
    # The demo sets both; named here, they are put back afterwards.
    monkeypatch.setenv(SITE_VARIABLE, "")
    monkeypatch.setenv(GLOBAL_VARIABLE, "")
    text = io.StringIO()
    rows = run_fedmpt_demo([7, 7], tmp_path / "world", Console(file=text, width=120), quick=True)
    content = {"protocol": "fedmpt-demo", "command": "test", "commit": "none", "rows": rows}
    validate_results(content | {"versions": {}, "hardware": "any"})
    first, second = (row for row in rows if row["method"] == "FedMPT")
    assert first["adapter_sha256"] == second["adapter_sha256"]
    assert first["mAP"] == second["mAP"]
    before = next(row for row in rows if row["method"] == "FedMPT before training")
    readings = [row["mAP"] for row in rows if row["method"].startswith("zero-shot")]
    assert before["mAP"] > max(readings) - 0.05
    shown = text.getvalue()
    for word in (
        "round   1/1",
        "no site (global test)",
        "report.html",
        "global_adapter.safetensors",
    ):
        assert word in shown
