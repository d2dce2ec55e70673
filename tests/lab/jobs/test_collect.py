import json
from pathlib import Path
from typing import Any

import torch

from vltune.flare.persistor import AdapterPersistor, read_adapter
from vltune_lab.jobs.collect import collect, summarise
from vltune_lab.report.summary import write_summary


def record(number: int, mAP: float, loss: float | None = 0.5) -> dict[str, Any]:
    trained = loss is not None
    return {
        "round": number,
        "mAP": mAP,
        "worst_site": "b",
        "worst_site_mAP": mAP - 0.125,
        "loss": loss,
        "seconds": 2.0 if trained else 0.0,
        "overhead_seconds": 0.25 if trained else None,
        "sites": ["a", "b"] if trained else [],
        "bytes_up": {"a": 110, "b": 130} if trained else {},
        "bytes_down": {"a": 100, "b": 100} if trained else {},
        "rejected": [{"site": "c", "reason": "NaN"}] if number == 2 else [],
        **({"robust": [{"site": "a", "action": "clipped", "reason": "far"}]} if trained else {}),
    }


def write_server(folder: Path, records: list[dict[str, Any]], start: int, done: int) -> Path:
    """What a server leaves; `done` rounds are complete."""
    folder.mkdir(parents=True)
    state = {
        "run_id": "run",
        "status": "completed",
        "started": 1000.0,
        "start_round": start,
        "completed_rounds": done,
        "phases": {"prepare": 3.0, "rounds": 4.0},
        "left_out": {"c": "no images"},
        "rounds": records,
        "last_training": {k: v for k, v in record(done, 0.0).items() if k != "round"},
        "best": {"round": records[-1]["round"], "mAP": records[-1]["mAP"]},
        "sites": {s: {"num_examples": 7, "num_validation": 5} for s in ("a", "b")},
    }
    (folder / "rounds.json").write_text(json.dumps(state))
    lines = [{"event": "round", **one} for one in records]
    for site, value in (("a", 0.75), ("b", 0.5)):
        line = {"site": site, "round": done, "split": "validation", "metric": "mAP"}
        lines.append({**line, "value": value})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for number in range(start, done + 1):
        tensors = {"w": torch.full((2,), float(number))}
        AdapterPersistor(facts={"name": "toy"}).save_round(folder, number, tensors)
    return folder


def job() -> dict[str, Any]:
    return {"name": "toy", "method": "Toy", "seed": 5, "relaxation": "inf", "threshold": 0.4}


def test_a_run_comes_home_and_its_summary_is_valid(tmp_path: Path) -> None:
    """Bytes up: (110 + 130 + 110 + 130) / 4 = 120."""
    records = [record(0, 0.25, None), record(1, 0.5), record(2, 0.625)]
    server, home = write_server(tmp_path / "server", records, 0, 2), tmp_path / "runs" / "x"
    state = collect(server, home, 9.0)
    summary = summarise(job(), state, home, "sim")
    write_summary(home, summary)
    assert summary["bytes_up_per_site_per_round"] == 120
    assert (summary["rounds"], summary["sites"], summary["global_mAP"]) == (2, 2, 0.625)
    assert summary["worst_site_mAP"] == 0.5
    assert summary["wall_seconds"] == 9.0
    assert summary["wall_seconds_by_phase"] == {
        "prepare": 3.0,
        "rounds": 4.0,
        "start_and_stop": 2.0,
    }
    assert summary["per_round"][2]["bytes_up"] == 240
    assert summary["rejected_updates"] == [{"round": 2, "site": "c", "reason": "NaN"}]
    assert summary["robust_decisions"] == [
        {"round": number, "site": "a", "action": "clipped", "reason": "far"} for number in (1, 2)
    ]
    assert summary["left_out_sites"] == {"c": "no images"}
    assert summary["thresholds"] == {"CF1": 0.4, "OF1": 0.4}
    final, facts = read_adapter(home / "global_adapter.safetensors")
    assert (final["w"].tolist(), facts["round"]) == ([2.0, 2.0], 2)


def test_a_continued_run_is_one_run(tmp_path: Path) -> None:
    """Stopped after two rounds, before round 2 was measured; continued to round 3."""
    home = tmp_path / "runs" / "x"
    first = [record(0, 0.25, None), record(1, 0.5)]
    collect(write_server(tmp_path / "first", first, 0, 2), home, 9.0)
    later = [record(2, 0.625, None), record(3, 0.375)]
    server = write_server(tmp_path / "later", later, 2, 3)
    state = collect(server, home, 11.0)
    assert [one["round"] for one in state["rounds"]] == [0, 1, 2, 3]
    assert state["rounds"][2]["mAP"] == 0.625
    assert state["rounds"][2]["loss"] == 0.5
    assert state["rounds"][2]["robust"] == record(2, 0.0)["robust"]
    assert state["rounds"][2]["bytes_up"] == {"a": 110, "b": 130}
    assert state["wall_seconds"] == 20.0
    assert state["phases"]["rounds"] == 8.0
    assert state["start_round"] == 0
    lines = [json.loads(text) for text in (home / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines if line.get("event")] == [0, 1, 2, 3]
    assert len(list((home / "adapters").glob("global_adapter_round*"))) == 4
    write_summary(home, summarise(job(), state, home, "sim"))
