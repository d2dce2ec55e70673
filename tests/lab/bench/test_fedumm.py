"""The benchmark's own way from worlds to rows, with random weights and a few images."""

import math
import sys
from pathlib import Path

import pytest
from rich.progress import Progress

sys.path += [
    str(Path(__file__).parents[2] / part) for part in ("vltune", "vltune/algorithms", "vltune/data")
]

from tiny_blip3o import write_tiny_blip3o
from unified_sites import write_judge

from vltune.config import ConfigError
from vltune_lab.bench.fedumm import Plan, kept, run_fedumm
from vltune_lab.scenes.library import load_library

pytestmark = pytest.mark.slow


def test_kept_share_of_the_centralised_gain() -> None:
    start, central = {"vqa": 0.2, "geneval": 0.5}, {"vqa": 0.6, "geneval": 0.4}
    shares = kept({"vqa": 0.5, "geneval": 0.5}, start, central)
    assert shares["kept_vqa"] == pytest.approx(0.75)
    assert shares["kept_geneval"] is None  # centralised training lost


def test_a_plan_that_makes_no_sense_is_refused() -> None:
    for wrong in ({"sites": (1,)}, {"alphas": (0.0,)}, {"alphas": (math.nan,)}):
        with pytest.raises(ConfigError, match="expected sites >= 2 and alphas > 0"):
            Plan("blip3o-tiny", "x", **wrong)  # type: ignore[arg-type]


def test_rows_of_all_methods(tmp_path: Path) -> None:
    weights = write_tiny_blip3o(tmp_path / "model")
    judge = write_judge(tmp_path / "judge", tuple(load_library().classnames))
    overrides = (f"judge.weights={judge}", "lora.rank=2", "max_answer_tokens=4", "samples.rounds=0")
    plan = Plan("blip3o-tiny", str(weights), (2,), (math.inf,), overrides, quick=True)
    with Progress(disable=True) as bars:
        rows = run_fedumm([5], tmp_path / "worlds", bars, plan)
    assert [row["method"] for row in rows] == ["zero-shot", "centralised", "fedumm", "local"]
    by_method = {row["method"]: row for row in rows}
    assert by_method["fedumm"]["bytes_up"] > 0
    assert by_method["zero-shot"]["bytes_up"] is by_method["local"]["bytes_up"] is None
    assert by_method["fedumm"]["setting"] == "2 sites, IID"
    losses = {name: row["generation_loss"] for name, row in by_method.items()}
    assert len(set(losses.values())) == 4
    assert -1 <= by_method["fedumm"]["task_cosine_last"] <= 1
    assert all(0 <= row["vqa"] <= 1 and 0 <= row["geneval"] <= 1 for row in rows)
