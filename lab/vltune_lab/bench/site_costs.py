"""What a site's part of a run costs: time of each step of a round, and memory of one process.

participant = timed(inner, state_dir)       # writes costs.jsonl as it goes
costs = round_costs(place)                  # of all sites of a run
"""

import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vltune.algorithms.lora_site import LoraParticipant
from vltune.flare.recipe import site_job
from vltune.parameters import LocalUpdate
from vltune.participant import Evaluation, Handshake, ShouldStop, never
from vltune.site_config import read_site_config
from vltune_lab.bench.fedumm_runs import Build

COSTS_FILE = "costs.jsonl"
MEGABYTE = 1e3
"""Kilobytes, in which the kernel counts, of one."""


@dataclass(frozen=True)
class RoundCosts:
    """Of one round, the sum over the sites, which run one after another.

    Attributes:
        seconds: Wall time of measuring the received model and training.
        cpu_seconds: Processor time of the same, which others on the machine do not change.
        cpu_seconds_once: Before the first round: loading, reading, encoding.
    """

    seconds: float
    cpu_seconds: float
    cpu_seconds_once: float


class TimedSite:
    """A site that writes down how long each step took.

    Args:
        inner: The site.
        path: Of the file.
    """

    def __init__(self, inner: LoraParticipant, path: Path) -> None:
        self._inner, self._path = inner, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def prepare(self, should_stop: ShouldStop) -> Handshake:
        """As the inner site."""
        with self._timed("prepare"):
            return self._inner.prepare(should_stop)

    def evaluate(self, shared: dict[str, Tensor], should_stop: ShouldStop = never) -> Evaluation:
        """As the inner site."""
        with self._timed("evaluate"):
            return self._inner.evaluate(shared, should_stop)

    def train(
        self, shared: dict[str, Tensor], round_number: int, should_stop: ShouldStop
    ) -> LocalUpdate:
        """As the inner site."""
        with self._timed("train"):
            return self._inner.train(shared, round_number, should_stop)

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        began, cpu = time.perf_counter(), time.process_time()
        yield
        line = {
            "step": step,
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - cpu,
        }
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def timed(inner: LoraParticipant, state_dir: Path) -> TimedSite:
    """Wrap a site; its file lies in the site's state folder."""
    return TimedSite(inner, state_dir / COSTS_FILE)


def round_costs(state: Path) -> RoundCosts:
    """Costs of a finished run.

    A site's first measurement also measures the untouched model and is left out where there are
    others.

    Args:
        state: The sites' `state_dir`.
    """
    sites = [_by_step(path) for path in sorted(state.rglob(COSTS_FILE))]

    def mean(key: str) -> float:
        return sum(
            statistics.fmean(line[key] for line in site["evaluate"][1:] or site["evaluate"])
            + statistics.fmean(line[key] for line in site["train"])
            for site in sites
        )

    once = sum(line["cpu_seconds"] for site in sites for line in site["prepare"])
    return RoundCosts(mean("seconds"), mean("cpu_seconds"), once)


def _by_step(path: Path) -> dict[str, list[dict[str, float]]]:
    steps: dict[str, list[dict[str, float]]] = {}
    for text in path.read_text().splitlines():
        line = json.loads(text)
        steps.setdefault(line["step"], []).append(line)
    return steps


def peak_memory(
    job: Mapping[str, Any], site_file: Path, name: str, place: Path
) -> dict[str, float]:
    """Memory of a process of its own in which one site prepares, measures and trains a round.

    Args:
        job: `participant` names the builder.
        site_file: The site's vltune_site.yaml.
        name: Of the site.
        place: An empty folder for its state.

    Returns:
        `peak_memory_mb` of the process, and `memory_before_mb`: what it had with everything
        imported and nothing loaded.
    """
    place.mkdir(parents=True)
    order = place / "order.json"
    content = {"job": dict(site_job(job)), "site_file": str(site_file), "name": name}
    order.write_text(json.dumps(content | {"participant": job["participant"]}))
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, str(order)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            f"the site's process ended with {done.returncode}: {done.stderr[-2000:]}"
        )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def one_round(order: Path) -> dict[str, float]:
    """What the process of `peak_memory` does."""
    content = json.loads(order.read_text())
    module, _, function = content["participant"].rpartition(".")
    build: Build = getattr(importlib.import_module(module), function)
    import transformers.models.blip.modeling_blip  # noqa: F401 - counted as imported

    before = _status("VmRSS")
    site = read_site_config(Path(content["site_file"]))
    participant = build(content["job"], site, content["name"], order.parent, 1)
    start = participant.prepare(lambda: False).initial
    participant.evaluate(start)
    participant.train(start, 0, lambda: False)
    return {"peak_memory_mb": _status("VmHWM"), "memory_before_mb": before}


def _status(key: str) -> float:
    """Megabytes of this process by the kernel; its peak counts from the process' own start."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / MEGABYTE
    raise RuntimeError(f"/proc/self/status has no {key}")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(one_round(Path(sys.argv[1]))) + "\n")
