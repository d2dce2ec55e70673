import json
from pathlib import Path
from typing import Any

from vltune_lab.jobs.follow import Follower, round_line

RECORD: dict[str, Any] = {
    "event": "round",
    "round": 2,
    "mAP": 0.61234,
    "worst_site": "site-3",
    "worst_site_mAP": 0.5,
    "loss": 1.25,
    "seconds": 3.21,
    "bytes_up": {"site-1": 800_000, "site-3": 700_000},
    "rejected": [],
}


def test_each_whole_line_is_seen_once(tmp_path: Path) -> None:
    path, seen = tmp_path / "metrics.jsonl", []
    follower = Follower(path, lambda record: seen.append(record["round"]))
    follower.poll()
    text = "".join(json.dumps({**RECORD, "round": number}) + "\n" for number in range(3))
    path.write_text(json.dumps({"site": "a", "round": 0}) + "\n" + text[:-5])
    follower.poll()
    follower.poll()
    assert seen == [0, 1]
    with path.open("a") as stream:
        stream.write(text[-5:])
    follower.poll()
    assert seen == [0, 1, 2]


def test_a_line_says_what_a_user_wants_to_know() -> None:
    """0.8 MB + 0.7 MB = 1.50 MB."""
    assert round_line(RECORD, 10) == (
        "round   2/10  mAP 0.6123  worst site-3 0.5000  loss 1.2500  3.2 s  1.50 MB up"
    )


def test_the_start_and_what_was_refused_are_said() -> None:
    start = RECORD | {"round": 0, "bytes_up": {}, "loss": None, "mAP": None, "worst_site": None}
    assert round_line(start, 10) == "round   0/10  mAP -  before training"
    refused = RECORD | {"rejected": [{"site": "site-2", "reason": "NaN"}]}
    assert round_line(refused, 10).endswith("without site-2")
    treated = RECORD | {"robust": [{"site": "site-3", "action": "left_out", "reason": "far"}]}
    assert round_line(treated, 10).endswith("MB up  site-3 left out")


def test_the_line_names_the_metric_of_the_run() -> None:
    record = {"round": 0, "accuracy": 0.5, "worst_site": "b", "worst_site_accuracy": 0.25}
    line = round_line(record | {"bytes_up": {}, "rejected": []}, 3)
    assert "accuracy 0.5000" in line
    assert "worst b 0.2500" in line
