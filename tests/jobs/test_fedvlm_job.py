"""FedVLM through its job: what the export holds, and a site that is killed while it trains."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parents[1] / "vltune"))
sys.path.append(str(Path(__file__).parents[1] / "vltune" / "algorithms"))

from answer_sites import write_site
from tiny_florence import write_tiny_florence

from vltune.config import ConfigError
from vltune_lab.jobs.kinds import FEDVLM
from vltune_lab.jobs.launch import Options, make_recipe, run_job
from vltune_lab.jobs.resolve import resolve_job
from vltune_lab.jobs.simulate import RunFailedError

NAMES = ("site-1", "site-2")
ROUNDS = 4


@pytest.mark.slow
def test_the_export_carries_every_value_and_the_mode_for_the_server(tmp_path: Path) -> None:
    job = resolve_job(FEDVLM, ["aggregation.mode=svd", "lora.rank=4"])
    make_recipe(job).export(str(tmp_path))
    config = tmp_path / "fedvlm" / "app" / "config"
    told = json.loads((config / "vltune_job.json").read_text())
    assert (told["lora"]["rank"], told["aggregation"]["mode"]) == (4, "svd")
    assert told["num_rounds"] == job["federation"]["rounds"]
    server = json.loads((config / "config_fed_server.json").read_text())
    aggregator = next(c for c in server["components"] if c["id"] == "aggregator")
    assert aggregator["args"]["aggregation"]["mode"] == "svd"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("aggregation.mode=mean", "expected one of fedavg"),
        ("lora.rank=0", "rank must be >= 1"),
        ("objective.name=ppo", "expected one of sft, dpo"),
        ("federation.metric=loss", "metric is 'loss'"),
        ("warm_up_epochs=-1", "warm_up_epochs >= 0"),
        ("agregation={mode: svd}", "agregation"),
        ("federation.metric=mAP", "no site of this job sends"),
        ("num_rounds=3", "num_rounds"),
    ],
)
def test_a_wrong_value_ends_before_anything_starts(override: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        resolve_job(FEDVLM, [override])


def options(tmp_path: Path, name: str, **others: Any) -> Options:
    overrides = (
        f"backbone.weights={tmp_path / 'model'}",
        "lora.rank=2",
        "training.batch_size=2",
        "training.local_epochs=6",
        "max_answer_tokens=4",
        f"federation.rounds={ROUNDS}",
        "federation.tensorboard=false",
    )
    given = {"sites": NAMES, "overrides": overrides, "name": name, "out": tmp_path / "runs"}
    return Options(**given | others)


def kill_when(path: Path, site: str) -> threading.Thread:
    """Kill the simulated site's process as soon as `path` (a pattern) is there."""

    def work() -> None:
        folder, pattern = path.parents[1], str(path.relative_to(path.parents[1]))
        limit = time.monotonic() + 240
        while time.monotonic() < limit and not list(folder.glob(pattern)):
            time.sleep(0.01)
        for process in psutil.Process().children(recursive=True):
            if "--client" in (line := process.cmdline()) and site in line:
                os.kill(process.pid, signal.SIGKILL)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def personal(tmp_path: Path, name: str, run_id: str) -> dict[str, Any]:
    folder = tmp_path / name / "site-1" / "vltune_state" / "site-1" / run_id
    return load_file(folder / f"personal_round{ROUNDS - 1}.safetensors")


@pytest.mark.flare
def test_a_killed_site_and_a_resumed_run_give_the_numbers_of_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The site dies after its second round, somewhere before or in its third."""
    write_tiny_florence(tmp_path / "model")
    runs, states = {}, {}
    for name in ("whole", "broken"):
        for site in NAMES:
            write_site(tmp_path / name, site)
        pattern = tmp_path / name / "{site}" / "vltune_site.yaml"
        monkeypatch.setenv("VLTUNE_SITE_CONFIG", str(pattern))
        state = tmp_path / name / "site-1" / "vltune_state" / "site-1"
        if name == "broken":
            killer = kill_when(state / "*" / "personal_round1.safetensors", "site-1")
            short = options(tmp_path, name)
            with pytest.raises(RunFailedError):
                run_job(FEDVLM, _quick_timeouts(short))
            killer.join()
            resumed = Options(resume=tmp_path / "runs" / name, out=tmp_path / "runs")
            runs[name] = run_job(FEDVLM, resumed)
        else:
            runs[name] = run_job(FEDVLM, _quick_timeouts(options(tmp_path, name)))
        run_id = json.loads((runs[name] / "rounds.json").read_text())["run_id"]
        states[name] = personal(tmp_path, name, run_id)
        adapter = state / run_id / "peft_adapter" / "adapter_model.safetensors"
        states[name] |= load_file(adapter)
    one, other = states["whole"], states["broken"]
    assert one.keys() == other.keys()
    assert any("lora_A" in key for key in one)
    for key, value in one.items():
        assert (value - other[key]).abs().max() <= 1e-6, key
    figures = [json.loads((run / "summary.json").read_text())["scores"] for run in runs.values()]
    assert figures[0] == figures[1]
    assert (runs["broken"] / "report.html").exists()


def _quick_timeouts(given: Options) -> Options:
    """A dead site is noticed in seconds."""
    overrides = (*given.overrides, "federation.round_timeout_seconds=20")
    return Options(**{**vars(given), "overrides": overrides})
