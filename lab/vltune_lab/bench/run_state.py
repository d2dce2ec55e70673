"""What a benchmark gives to a run and what the finished run's folder says."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vltune.flare.run_log import METRICS_FILE, STATE_FILE
from vltune_lab.jobs.resolve import Job

TEST = "test_"


def in_a_federation_of(job: Job, num_sites: int) -> Job:
    """The job, waiting for that many sites."""
    return job | {"federation": {**job["federation"], "min_sites": num_sites}}


def num_examples(server: Path) -> dict[str, int]:
    """Site -> number of its training examples."""
    sites = json.loads((server / STATE_FILE).read_text())["sites"]
    return {site: facts["num_examples"] for site, facts in sites.items()}


def rounds_of(server: Path) -> list[dict[str, Any]]:
    """The records of all rounds: bytes, exactness error, figures."""
    records: list[dict[str, Any]] = json.loads((server / STATE_FILE).read_text())["rounds"]
    return records


def last_round(server: Path) -> dict[str, Any]:
    """The record of the last round."""
    return rounds_of(server)[-1]


def by_round(server: Path, metric: str) -> dict[int, dict[str, float]]:
    """Round -> site -> value of one metric of the sites."""
    found: dict[int, dict[str, float]] = {}
    for line in _lines(server):
        if line.get("metric") == metric:
            found.setdefault(line["round"], {})[line["site"]] = line["value"]
    return dict(sorted(found.items()))


def test_metrics(server: Path, round_number: int) -> dict[str, dict[str, float]]:
    """Site -> its figures on its test set after a round, without `test_`."""
    found: dict[str, dict[str, float]] = {}
    for line in _lines(server):
        name = str(line.get("metric", ""))
        if name.startswith(TEST) and line["round"] == round_number:
            found.setdefault(line["site"], {})[name.removeprefix(TEST)] = line["value"]
    return dict(sorted(found.items()))


def _lines(server: Path) -> Iterator[dict[str, Any]]:
    for text in (server / METRICS_FILE).read_text().splitlines():
        yield json.loads(text)
