"""The controller over real executors, filters and aggregator, all in this process."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from vltune.flare.federation import FederationError
from vltune.flare.persistor import read_adapter, round_file, write_adapter
from vltune.flare.round_record import Measured, measurement
from vltune_lab.jobs.in_process import JOB_ID, make_workspace, run_in_process

NAMES = ("site-1", "site-2", "site-3")


def state_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "rounds.json").read_text())


def test_a_run_writes_down_every_round_and_its_best(tmp_path: Path, sites: Any, job: Any) -> None:
    sites()
    output = run_in_process(job(), NAMES[:2], tmp_path / "run")
    state = state_of(output)
    assert state["status"] == "completed"
    assert state["completed_rounds"] == 2
    assert state["sites"]["site-2"]["num_examples"] == 23
    records = state["rounds"]
    assert [record["round"] for record in records] == [0, 1, 2]
    assert records[0]["loss"] is None
    assert records[2]["loss"] < records[1]["loss"]
    assert records[2]["mAP"] > records[0]["mAP"] + 0.1
    best = max(records, key=lambda record: record["mAP"])
    assert state["best"]["round"] == best["round"]
    best_bytes = (output / round_file(best["round"])).read_bytes()
    assert (output / "best_global_adapter.safetensors").read_bytes() == best_bytes
    lines = [json.loads(text) for text in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines if line.get("event")] == [0, 1, 2]
    assert {frozenset(line) for line in lines if "event" not in line} == {
        frozenset({"site", "round", "split", "metric", "value"})
    }


def test_another_metric_chooses_the_best_model(tmp_path: Path, sites: Any, job: Any) -> None:
    sites()
    asked = job()
    asked["federation"] = {**asked["federation"], "metric": "accuracy"}
    output = run_in_process(asked, NAMES[:2], tmp_path / "run")
    state = state_of(output)
    lines = [json.loads(text) for text in (output / "metrics.jsonl").read_text().splitlines()]
    for record in state["rounds"]:
        sent = [
            line["value"]
            for line in lines
            if line.get("metric") == "accuracy" and line["round"] == record["round"]
        ]
        assert len(sent) == 2
        assert record["accuracy"] == pytest.approx(sum(sent) / 2)
        assert record["worst_site_accuracy"] == min(sent)
        assert "mAP" not in record
    best = max(reversed(state["rounds"]), key=lambda record: record["accuracy"])
    assert state["best"] == {"round": best["round"], "accuracy": best["accuracy"]}
    assert state["metric"] == "accuracy"


def test_a_metric_that_no_site_reports_ends_the_run(tmp_path: Path, sites: Any, job: Any) -> None:
    sites()
    asked = job()
    asked["federation"] = {**asked["federation"], "metric": "rouge_l"}
    with pytest.raises(FederationError, match="no site reports; they report accuracy, mAP"):
        run_in_process(asked, NAMES[:2], tmp_path / "run")


def test_sites_of_one_round_may_lack_the_metric_that_others_report() -> None:
    """A round that only sites without data for it answered ends nothing, and is never the best."""
    lacking = {"draws": Measured({"generation_loss": 1.0}, {})}
    record = measurement(7, lacking, "vqa_accuracy", is_required=False)
    assert math.isnan(record["vqa_accuracy"])
    with pytest.raises(FederationError, match="no site reports"):
        measurement(7, lacking, "vqa_accuracy")


def test_bytes_are_those_that_the_sites_let_out(
    tmp_path: Path, sites: Any, job: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sites()
    caplog.set_level("INFO")
    state = state_of(run_in_process(job(), NAMES[:2], tmp_path / "run"))
    left = sum(int(text.split()[0]) for text in caplog.messages if "bytes leave" in text)
    counted = sum(sum(record["bytes_up"].values()) for record in state["rounds"])
    for part in ("bytes_prepare", "bytes_validate"):
        counted += sum(state[part]["up"].values())
    assert counted == left > 0


def test_the_order_of_sites_changes_no_bit(tmp_path: Path, sites: Any, job: Any) -> None:
    sites(NAMES)
    forth = run_in_process(job(), NAMES, tmp_path / "forth", order=NAMES)
    back = run_in_process(job(), NAMES, tmp_path / "back", order=NAMES[::-1])
    for number in range(3):
        assert (forth / round_file(number)).read_bytes() == (back / round_file(number)).read_bytes()


def test_one_site_and_one_round_is_plain_local_training(
    tmp_path: Path, sites: Any, job: Any
) -> None:
    from linear_site import build_participant

    from vltune.site_config import find_site_config

    sites(NAMES[:1])
    one = job(federation={"rounds": 1, "min_sites": 1})
    output = run_in_process(one, NAMES[:1], tmp_path / "run")
    plain = build_participant(one, find_site_config("site-1", None), "site-1", tmp_path, 1)
    initial = plain.prepare(lambda: False).initial
    expected = plain.train(initial, 0, lambda: False).tensors
    got, _ = read_adapter(output / round_file(1))
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_a_continued_run_equals_an_uninterrupted_one(tmp_path: Path, sites: Any, job: Any) -> None:
    """Two rounds, then two more from the sites' own state: the adapter of four rounds."""
    sites()
    whole = run_in_process(job(federation={"rounds": 4}), NAMES[:2], tmp_path / "whole")
    half = run_in_process(job(), NAMES[:2], tmp_path / "half")
    workspace = make_workspace(tmp_path / "rest/server", "server")
    config = Path(workspace.get_app_config_dir(JOB_ID))
    tensors, facts = read_adapter(half / round_file(2))
    write_adapter(config / "resume.safetensors", tensors, facts)
    run = {
        "run_id": state_of(half)["run_id"],
        "start_round": 2,
        "resume_file": "resume.safetensors",
    }
    rest = run_in_process(job(federation={"rounds": 4}), NAMES[:2], tmp_path / "rest", run)
    assert (rest / round_file(4)).read_bytes() == (whole / round_file(4)).read_bytes()


def test_a_refused_update_costs_only_itself(tmp_path: Path, sites: Any, job: Any) -> None:
    sites(NAMES)
    for number, kind in enumerate(("nan", "huge", "leak", "raise")):
        trouble = {"site-2": [1, kind]}
        output = run_in_process(job(trouble=trouble), NAMES, tmp_path / str(number))
        record = state_of(output)["rounds"][2]
        assert record["sites"] == ["site-1", "site-3"]
        assert [entry["site"] for entry in record["rejected"]] == ["site-2"]
        assert record["rejected"][0]["reason"]


def test_a_robust_rule_says_whom_it_left_out_and_the_model_goes_on(
    tmp_path: Path, sites: Any, job: Any
) -> None:
    """site-2 sends ten times the opposite in its second round; three of five may be kept."""
    names = tuple(f"site-{n}" for n in range(1, 6))
    sites(names)
    robust = {"rule": "multi_krum", "num_malicious": 1, "keep": 3}
    runs = {}
    for name, federation in {"plain": {}, "robust": {"robust": robust, "min_sites": 5}}.items():
        asked = job(trouble={"site-2": [1, "flip"]}, federation=federation)
        runs[name] = state_of(run_in_process(asked, names, tmp_path / name))["rounds"]
    assert all("robust" not in record for record in runs["plain"])
    first, last = runs["robust"][1:]
    assert len(first["robust"]) == 2
    assert "site-2" in [entry["site"] for entry in last["robust"]]
    assert {entry["action"] for entry in last["robust"]} == {"left_out"}
    assert last["robust"][0]["reason"].startswith("Krum score ")
    assert last["sites"] == list(names)
    assert last["mAP"] > runs["plain"][2]["mAP"] + 0.1


@pytest.mark.parametrize(
    ("robust", "reached"),
    [
        ({"rule": "none"}, (0.2, 0.4)),
        ({"rule": "clip", "clip_multiple": 1.0}, (0.98, 1.0)),
        ({"rule": "median"}, (0.98, 1.0)),
        ({"rule": "trimmed_mean", "num_malicious": 2}, (0.98, 1.0)),
        ({"rule": "krum", "num_malicious": 2}, (0.96, 1.0)),
        ({"rule": "multi_krum", "num_malicious": 2}, (0.98, 1.0)),
        ({"rule": "cosine"}, (0.98, 1.0)),
    ],
    ids=lambda value: value["rule"] if isinstance(value, dict) else "",
)
def test_two_of_eight_sites_that_flip_signs(
    robust: dict[str, Any], reached: tuple[float, float], tmp_path: Path, sites: Any, job: Any
) -> None:
    """Ten times the opposite in the last round; docs/robust_aggregation.md has the figures."""
    names = tuple(f"site-{n}" for n in range(1, 9))
    sites(names)
    trouble = {name: [1, "flip"] for name in names[2:4]}
    asked = job(trouble=trouble, federation={"robust": robust, "min_sites": 7})
    last = state_of(run_in_process(asked, names, tmp_path / "run"))["rounds"][-1]
    assert reached[0] < last["mAP"] <= reached[1]


def test_too_few_updates_end_the_run_with_every_reason(
    tmp_path: Path, sites: Any, job: Any
) -> None:
    sites(NAMES)
    trouble = {"site-1": [1, "nan"], "site-3": [1, "value"]}
    reasons = r"round 1: 1 of 3 updates accepted, min_sites is 2: site-1: .*NaN.*; site-3: .*row 3"
    with pytest.raises(FederationError, match=reasons):
        run_in_process(job(trouble=trouble), NAMES, tmp_path / "run")
    assert state_of(tmp_path / "run/server/in_process/app_server")["status"] == "failed"


def test_a_site_that_differs_is_left_out(tmp_path: Path, sites: Any, job: Any) -> None:
    sites(NAMES)
    output = run_in_process(job(other_start="site-2"), NAMES, tmp_path / "run")
    state = state_of(output)
    assert list(state["sites"]) == ["site-1", "site-3"]
    assert "initial tensors" in state["left_out"]["site-2"]


def test_a_site_that_cannot_prepare_is_left_out(tmp_path: Path, sites: Any, job: Any) -> None:
    sites(NAMES)
    output = run_in_process(job(trouble={"site-2": [-1, "value"]}), NAMES, tmp_path / "run")
    assert "row 3 is wrong" in state_of(output)["left_out"]["site-2"]


def test_nothing_left_to_do_is_an_error(tmp_path: Path, sites: Any, job: Any) -> None:
    sites()
    with pytest.raises(FederationError, match="2 rounds are done and the job asks for 2"):
        run_in_process(job(), NAMES[:2], tmp_path / "run", {"start_round": 2})
