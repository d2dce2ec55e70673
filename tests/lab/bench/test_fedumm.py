"""The benchmark's own way from worlds to rows, with random weights and a few images."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.progress import Progress

sys.path += [
    str(Path(__file__).parents[2] / part) for part in ("vltune", "vltune/algorithms", "vltune/data")
]

from tiny_blip3o import write_tiny_blip3o
from unified_sites import write_judge

from vltune.config import ConfigError
from vltune_lab.bench.fedumm import Mix, Plan, kept, run_fedumm
from vltune_lab.scenes.library import load_library

pytestmark = pytest.mark.slow


def test_kept_share_of_the_centralised_gain() -> None:
    start, central = {"vqa": 0.2, "geneval": 0.5}, {"vqa": 0.6, "geneval": 0.4}
    shares = kept({"vqa": 0.5, "geneval": 0.5}, start, central)
    assert shares["kept_vqa"] == pytest.approx(0.75)
    assert shares["kept_geneval"] is None  # centralised training lost
    assert (shares["gain_vqa"], shares["gain_geneval"]) == (pytest.approx(0.3), 0.0)


def test_a_plan_that_makes_no_sense_is_refused() -> None:
    for wrong in ({"sites": (1,)}, {"alphas": (0.0,)}, {"alphas": (math.nan,)}):
        with pytest.raises(ConfigError, match="expected sites >= 2 and alphas > 0"):
            Plan("blip3o-tiny", "x", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="--mix: expected both or half, got 'third'"):
        Plan("blip3o-tiny", "x", mix="third")  # type: ignore[arg-type]


def rows_of(folder: Path, mix: Mix) -> list[dict[str, Any]]:
    weights = write_tiny_blip3o(folder / "model")
    judge = write_judge(folder / "judge", tuple(load_library().classnames))
    overrides = (f"judge.weights={judge}", "lora.rank=2", "max_answer_tokens=4", "samples.rounds=0")
    plan = Plan("blip3o-tiny", str(weights), (2,), (math.inf,), overrides, quick=True, mix=mix)
    with Progress(disable=True) as bars:
        return run_fedumm([5], folder / "worlds", bars, plan)


def test_rows_where_one_site_answers_and_one_draws(tmp_path: Path) -> None:
    """Both abilities are measured at the server's model, and drawing has moved."""
    start, central, half = rows_of(tmp_path, "half")
    assert [start["method"], central["method"], half["method"]] == [
        "zero-shot",
        "centralised",
        "fedumm",
    ]
    assert half["setting"] == "2 sites, IID, half answer and half draw"
    assert half["task_cosine_first"] is None  # no site has both tasks
    assert half["generation_loss"] != start["generation_loss"]
    assert {"gain_vqa", "gain_geneval", "vqa", "geneval"} <= half.keys()
    world = tmp_path / "worlds" / "2-IID-5-half-quick"
    assert (world / "site-1/train/questions.json").exists()
    assert not (world / "site-1/train/captions.jsonl").exists()
    assert (world / "site-2/train/captions.jsonl").exists()
    assert not (world / "site-2/train/questions.json").exists()


def test_rows_of_all_methods(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "both")
    assert [row["method"] for row in rows] == ["zero-shot", "centralised", "fedumm", "local"]
    by_method = {row["method"]: row for row in rows}
    assert by_method["fedumm"]["bytes_up"] > 0
    assert by_method["zero-shot"]["bytes_up"] is by_method["local"]["bytes_up"] is None
    assert by_method["fedumm"]["setting"] == "2 sites, IID"
    losses = {name: row["generation_loss"] for name, row in by_method.items()}
    assert len(set(losses.values())) == 4
    assert -1 <= by_method["fedumm"]["task_cosine_last"] <= 1
    assert all(0 <= row["vqa"] <= 1 and 0 <= row["geneval"] <= 1 for row in rows)
