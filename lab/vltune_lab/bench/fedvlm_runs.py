"""The runs of benchmark `fedvlm`: federations, sites alone, everybody's data at one place."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from vltune.algorithms.fedvlm import build_participant as build_plain
from vltune.algorithms.lora_site import LoraParticipant
from vltune.flare.persistor import LAST_FILE, read_adapter
from vltune.lora import read_factors
from vltune.lora_exactness import exactness_error
from vltune.lora_factors import pair_factors
from vltune.parameters import LocalUpdate
from vltune.participant import ShouldStop
from vltune.robust_rules import weighted_mean
from vltune.site_config import AnySiteConfig, read_site_config, require_answers
from vltune_lab.bench.run_state import (
    in_a_federation_of,
    last_round,
    num_examples,
    test_metrics,
)
from vltune_lab.jobs.in_process import run_in_process
from vltune_lab.jobs.resolve import Job

SITE_FILE = "vltune_site.yaml"
FACTORS_FILE = "factors_sent.safetensors"
EVERYBODY = "everybody"
RECORDING = "vltune_lab.bench.fedvlm_runs.build_recording"


@dataclass(frozen=True)
class Measured:
    """What came of one method.

    Attributes:
        test: Site -> metrics of its final model on its test set.
        seconds: Wall time.
        bytes_up: Of a site in the last round; None where nothing travels.
        bytes_down: To a site in the last round.
        exactness_error: Of the last round, for the means of both factors: how far the product of
            mean factors is from the mean of the sites' products; the server's own figure where it
            has one.
    """

    test: dict[str, dict[str, float]]
    seconds: float
    bytes_up: float | None = None
    bytes_down: float | None = None
    exactness_error: float | None = None


@dataclass(frozen=True)
class Sites:
    """The sites of one world.

    Attributes:
        world: Its folder.
        names: Site names, sorted.
    """

    world: Path
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        found = sorted(path.parent.name for path in self.world.glob(f"*/{SITE_FILE}"))
        object.__setattr__(self, "names", tuple(found))

    def write_files(self, place: Path) -> Path:
        """Write each site's file for one run: its own state folder, the world's cache.

        Also that of a site with everybody's data.

        Returns:
            The files' path with `{site}` for the name, as in VLTUNE_SITE_CONFIG.
        """
        everything: dict[str, list[str]] = {"train": [], "validation": []}
        for name in self.names:
            parts = {
                part: [str(self.world / name / f"{part}.jsonl")]
                for part in ("train", "validation", "test")
            }
            for part, files in everything.items():
                files += parts[part]
            self._write(place, name, parts)
        self._write(place, EVERYBODY, everything)
        return place / "sites" / "{site}" / SITE_FILE

    def _write(self, place: Path, name: str, parts: Mapping[str, Sequence[str]]) -> None:
        content = {
            "site": name,
            "data": "preference",
            **{part: {"files": list(files)} for part, files in parts.items()},
            "cache_dir": str(self.world / "cache"),
            "state_dir": str(place / "state"),
        }
        path = place / "sites" / name / SITE_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content))


class RecordingSite:
    """A FedVLM site that also keeps both factors as they were after its last training."""

    def __init__(self, inner: LoraParticipant, path: Path) -> None:
        self._inner, self._path = inner, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def train(
        self, shared: dict[str, Tensor], round_number: int, should_stop: ShouldStop
    ) -> LocalUpdate:
        """Train and keep the factors."""
        update = self._inner.train(shared, round_number, should_stop)
        save_file(read_factors(self._inner.lora.model), self._path)
        return update


def build_recording(
    job: Mapping[str, Any], site: AnySiteConfig, site_name: str, state_dir: Path, threads: int
) -> RecordingSite:
    """As `vltune.algorithms.fedvlm.build_participant`, with a record for the benchmark."""
    inner = build_plain(job, site, site_name, state_dir, threads)
    return RecordingSite(inner, state_dir / FACTORS_FILE)


def federate(job: Job, sites: Sites, place: Path) -> Measured:
    """All sites together."""
    files = sites.write_files(place)
    began = time.perf_counter()
    whole = in_a_federation_of(job, len(sites.names)) | {"participant": RECORDING}
    server = run_in_process(whole, sites.names, place / "run", site_files=files)
    seconds = time.perf_counter() - began
    last = last_round(server)
    error = last.get("exactness_error")
    return Measured(
        test_metrics(server, last["round"]),
        seconds,
        sum(last["bytes_up"].values()) / len(sites.names),
        sum(last["bytes_down"].values()) / len(sites.names),
        _error_of_means(place, num_examples(server)) if error is None else error,
    )


def local_only(job: Job, sites: Sites, place: Path) -> Measured:
    """Each site alone, with as many rounds as a federation."""
    files = sites.write_files(place)
    alone = in_a_federation_of(job, 1)
    began = time.perf_counter()
    test: dict[str, dict[str, float]] = {}
    for name in sites.names:
        server = run_in_process(alone, (name,), place / f"run-{name}", site_files=files)
        test |= test_metrics(server, job["federation"]["rounds"])
    return Measured(test, time.perf_counter() - began)


def centralised(job: Job, sites: Sites, place: Path) -> Measured:
    """One model of everybody's training data, measured at each site."""
    files = sites.write_files(place)
    alone = in_a_federation_of(job, 1)
    began = time.perf_counter()
    server = run_in_process(alone, (EVERYBODY,), place / "run", site_files=files)
    adapter = read_adapter(server / LAST_FILE)[0]
    return Measured(_at_each_site(alone, sites, place, adapter), time.perf_counter() - began)


def untrained(job: Job, sites: Sites, place: Path) -> Measured:
    """The backbone as it is: B is zero."""
    sites.write_files(place)
    began = time.perf_counter()
    return Measured(_at_each_site(job, sites, place, None), time.perf_counter() - began)


def _at_each_site(
    job: Job, sites: Sites, place: Path, adapter: dict[str, Tensor] | None
) -> dict[str, dict[str, float]]:
    test = {}
    for name in sites.names:
        site = require_answers(read_site_config(place / "sites" / name / SITE_FILE))
        state = place / "measured" / name
        state.mkdir(parents=True)
        threads = len(os.sched_getaffinity(0))
        participant = build_plain(job, site, name, state, threads)
        start = participant.prepare(lambda: False).initial
        metrics = participant.finish(adapter or start)
        test[name] = {key.removeprefix("test_"): value for key, value in metrics.items()}
    return test


def _error_of_means(place: Path, examples: Mapping[str, int]) -> float:
    """`exactness_error` of averaging both factors, from what each site had after its training."""
    found = {path.parent.parent.name: path for path in place.glob(f"state/*/*/{FACTORS_FILE}")}
    sites = sorted(found)
    sent = [load_file(found[site]) for site in sites]
    weights = [examples[site] for site in sites]
    updates = [pair_factors(tensors, site) for tensors, site in zip(sent, sites, strict=True)]
    means = pair_factors(weighted_mean(sent, weights), "the mean")
    return exactness_error(updates, weights, means).overall
