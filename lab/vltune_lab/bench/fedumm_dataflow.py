"""Benchmark `fedumm-dataflow`: FedUMM on blip_vqa against the dataflow of research/fedumm.

The same start, questions, sites, rounds, steps and learning rate; what differs is what
`published_fedumm` says. Both run in one process, site after site, over the same messages. Accuracy
is the official one on a test set that no site owns, each method with its own way to answer.

A round's time is that of all sites, one after another, measuring the received model included.
`cpu_seconds_...` is the processor's and does not depend on what else runs. Memory is that of a
process of its own in which one site does a round, measured with the first seed.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import Progress

from vltune.algorithms.fedumm import build_participant
from vltune.config import load_config
from vltune.flare.persistor import LAST_FILE, read_adapter
from vltune.site_config import AnySiteConfig
from vltune_lab.bench.blip_start import NAME, QUICK, StartRecipe, make_start
from vltune_lab.bench.fedumm_runs import Build, on_global_test, site_names, write_files
from vltune_lab.bench.journal import Journal, weights_hash
from vltune_lab.bench.published_fedumm import build_published
from vltune_lab.bench.run_state import in_a_federation_of, rounds_of
from vltune_lab.bench.site_costs import TimedSite, peak_memory, round_costs, timed
from vltune_lab.jobs.in_process import run_in_process
from vltune_lab.jobs.kinds import FEDUMM
from vltune_lab.jobs.resolve import Job, resolve_job
from vltune_lab.scenes.make_unified import make_unified_world
from vltune_lab.scenes.unified_world import UNIFIED_WORLD, Pool, UnifiedWorld

JOURNAL = "rows.jsonl"
SITES, ALPHA = 4, 0.5
POOL = Pool(200, 24, 16)
GLOBAL_TEST = 150
ROUNDS = 4
RATE = "training.learning_rate=3e-3"
"""For all methods."""


@dataclass(frozen=True)
class Method:
    """One way to run the federation.

    Attributes:
        build: A site.
        timed: Dotted path of the same with its costs written down.
        overrides: Of the job.
    """

    build: Build
    timed: str
    overrides: tuple[str, ...] = ()


def build_timed_published(
    job: Mapping[str, Any], site: AnySiteConfig, site_name: str, state_dir: Path, threads: int
) -> TimedSite:
    """As `published_fedumm.build_published`."""
    return timed(build_published(job, site, site_name, state_dir, threads), state_dir)


def build_timed(
    job: Mapping[str, Any], site: AnySiteConfig, site_name: str, state_dir: Path, threads: int
) -> TimedSite:
    """As `vltune.algorithms.fedumm.build_participant`."""
    return timed(build_participant(job, site, site_name, state_dir, threads), state_dir)


METHODS = {
    "research/fedumm's dataflow": Method(
        build_published, f"{__name__}.build_timed_published", ("keep_optimizer=false",)
    ),
    "FedUMM, fedavg": Method(build_participant, f"{__name__}.build_timed"),
    "FedUMM, ffa": Method(build_participant, f"{__name__}.build_timed", ("aggregation.mode=ffa",)),
}


def run_fedumm_dataflow(
    seeds: Sequence[int], folder: Path, progress: Progress, *, quick: bool = False
) -> list[dict[str, Any]]:
    """Run every method with every seed.

    Args:
        seeds: Seeds of the world, the factors' start and the order of samples.
        folder: Of weights and worlds, made where they are not there, and of the rows as they come:
            a run that was stopped goes on after its last row.
        progress: Shows a bar.
        quick: One round on a few images from untrained weights, to see that it runs.

    Returns:
        Rows of a protocol file.
    """
    folder = folder.absolute()  # the sites' files lie elsewhere and name it
    weights = make_start(folder, QUICK if quick else StartRecipe())
    facts = {"weights": weights_hash(weights), "quick": quick}
    journal = Journal(folder / JOURNAL)
    bar = progress.add_task("runs", total=len(seeds) * (1 + len(METHODS)))
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        world = make_world(seed, folder, quick=quick)
        has_memory = seed == seeds[0]
        runs: dict[str, Callable[[], dict[str, Any]]] = {
            "the start": partial(_untrained, _job(weights, seed, (), quick=quick), world)
        }
        for name, method in METHODS.items():
            job = _job(weights, seed, method.overrides, quick=quick)
            runs[name] = partial(_federate, method, job, world, has_memory=has_memory)
        for name, run in runs.items():
            common = {"method": name, "setting": f"{SITES} sites, alpha {ALPHA:g}", "seed": seed}
            told = common | facts | {"has_memory": has_memory, "sizes": repr((POOL, ROUNDS, RATE))}
            rows.append(common | journal.row(told, run))
            progress.advance(bar)
    return rows


def make_world(seed: int, folder: Path, *, quick: bool) -> Path:
    """Make the world of one seed, questions only; returns its folder."""
    world = replace(
        load_config(UnifiedWorld, UNIFIED_WORLD),
        seed=seed,
        sites=SITES,
        tasks=("vqa",),
        partition="dirichlet",
        alpha=ALPHA,
        pool=Pool(48, 24, 16) if quick else POOL,
        global_test=8 if quick else GLOBAL_TEST,
        global_prompts=1,
    )
    place = folder / f"world-{seed}{'-quick' if quick else ''}"
    make_unified_world(world, place)
    return place


def _job(weights: Path, seed: int, others: Sequence[str], *, quick: bool) -> Job:
    return resolve_job(
        FEDUMM,
        [
            f"seed={seed}",
            f"backbone.model={NAME}",
            f"backbone.weights={weights}",
            "judge=null",
            "samples={}",
            RATE,
            "federation.tensorboard=false",
            f"federation.min_sites={SITES}",
            f"federation.rounds={1 if quick else ROUNDS}",
            *others,
        ],
    )


def _untrained(job: Job, world: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="vltune-bench-") as text:
        place = Path(text)
        write_files(world, place, cache=place / "cache", can_draw=False)
        return {"vqa": on_global_test(job, place, None)["vqa_accuracy"]}


def _federate(method: Method, job: Job, world: Path, *, has_memory: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="vltune-bench-") as text:
        place = Path(text)
        files = write_files(world, place, cache=place / "cache", can_draw=False)
        names = site_names(world)
        whole = in_a_federation_of(job, len(names)) | {"participant": method.timed}
        server = run_in_process(whole, names, place / "run", site_files=files)
        costs = round_costs(place / "state")
        adapter = read_adapter(server / LAST_FILE)[0]
        rounds = [record for record in rounds_of(server) if record.get("bytes_up")]
        figures = {
            "vqa": on_global_test(job, place, adapter, method.build)["vqa_accuracy"],
            "cpu_seconds_round": costs.cpu_seconds,
            "seconds_round": costs.seconds,
            "cpu_seconds_once": costs.cpu_seconds_once,
            **{
                key: sum(sum(one[key].values()) for one in rounds) / len(rounds) / len(names)
                for key in ("bytes_up", "bytes_down")
            },
            "exactness_error": rounds[-1].get("exactness_error"),
        }
    if has_memory:
        figures |= _memory(method, job, world)
    return figures


def _memory(method: Method, job: Job, world: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="vltune-bench-") as text:
        place = Path(text)
        files = write_files(world, place, cache=place / "cache", can_draw=False)
        name = site_names(world)[0]
        site_file = Path(str(files).replace("{site}", name))
        return peak_memory(job | {"participant": method.timed}, site_file, name, place / "process")
