import os
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from vltune_lab.bench.commands import register
from vltune_lab.bench.results import load_results, write_results
from vltune_lab.bench.tables import TableError


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    return app


def test_tables_are_checked_and_rewritten(
    tmp_path: Path, app: typer.Typer, speed: dict[str, Any]
) -> None:
    write_results(tmp_path / "speed.json", speed)
    readme = tmp_path / "README.md"
    readme.write_text("<!-- table:speed -->\n<!-- /table -->\n")
    arguments = ["bench", "tables", "--readme", str(readme), "--results", str(tmp_path)]
    result = CliRunner().invoke(app, [*arguments, "--check"])
    assert isinstance(result.exception, TableError)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert "speed changed" in result.output
    assert CliRunner().invoke(app, [*arguments, "--check"]).exit_code == 0


@pytest.mark.slow
def test_every_part_agrees_with_the_published_dataflow(tmp_path: Path, app: typer.Typer) -> None:
    out = tmp_path / "speed.json"
    result = CliRunner().invoke(app, ["bench", "speed", "--quick", "--out", str(out)])
    assert result.exit_code == 0, result.output
    rows = load_results(out)["rows"]
    # The cache keeps fp16: half a unit in the last place of a number below 1 is 2^-12.
    # Both solvers stop at an L1 error of 1e-4 of the class marginal, and psi is C = 7 times that.
    limits = [2**-12 + 1e-6, 1e-5, 1e-5, 2e-3, 1e-2]
    assert len(rows) == len(limits)
    for row, limit in zip(rows, limits, strict=True):
        assert row["max_abs_error"] <= limit, row
        assert row["repeats"] >= 5


def test_scenes_are_timed_on_one_core_and_the_cores_given_back(
    tmp_path: Path, app: typer.Typer
) -> None:
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    out = tmp_path / "scenes.json"
    result = CliRunner().invoke(
        app, ["bench", "scenes", "--quick", "--seeds", "5", "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    rows = load_results(out)["rows"]
    assert [row["setting"] for row in rows] == ["64 px, one core"] * 2 + ["96 px, one core"] * 2
    for row in rows:
        assert row["images_per_second"] == pytest.approx(20 / row["seconds"])
    if cores is not None:
        assert os.sched_getaffinity(0) == cores
