"""Benchmark `conditions`: what the words of the conditions do for FedMPT on the embedded world.

The demo's job, whole federations in one process (the same numbers as under FLARE's simulator), once
for each set of conditions and seed: the paper's five, those that a language model found, as many
words that have nothing to do with photographs, and none.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from rich.progress import Progress

from vltune.conditions import condition_cache_mapping, load_conditions
from vltune.config import load_config
from vltune.files import write_json_atomic
from vltune.seed import derive_seed
from vltune_lab.demo import prepare_environment
from vltune_lab.discovery.published import CACHES
from vltune_lab.jobs.collect import collect
from vltune_lab.jobs.global_test import measure
from vltune_lab.jobs.in_process import run_in_process
from vltune_lab.jobs.kinds import FEDMPT
from vltune_lab.jobs.resolve import Job, resolve_job
from vltune_lab.scenes.make import make_world
from vltune_lab.scenes.world import DEMO_WORLD, WorldConfig

PAPER = CACHES / "embedded.json"
DISCOVERED = CACHES / "embedded-likelihood.json"
# Words that say nothing of how a photograph looks; K of them are drawn for each seed.
UNRELATED = (
    "algebra", "alphabet", "apology", "budget", "century", "chapter", "comma", "contract",
    "december", "deadline", "discount", "election", "email", "fraction", "grammar", "gossip",
    "holiday", "income", "invoice", "journal", "law", "lottery", "melody", "mortgage", "museum",
    "opinion", "password", "payment", "poem", "prayer", "promise", "proverb", "rumour", "salary",
    "secret", "seventeen", "sonata", "syllable", "thesis", "tuesday",
)  # fmt: skip
# A prompt needs words: one condition whose word is in the learnable context's first value anyway.
NEUTRAL = "photo"
QUICK = ("federation.rounds=1", "training.local_epochs=1")


def run_conditions(
    seeds: Sequence[int], world: Path, progress: Progress, *, quick: bool = False
) -> list[dict[str, Any]]:
    """Run the demo's job with every set of conditions and seed.

    Args:
        seeds: Run seeds.
        world: Folder of the demo world; made where it is not there.
        progress: Shows a bar.
        quick: One round, to see that it runs.

    Returns:
        Rows of a protocol file, with the conditions as text.
    """
    config = load_config(WorldConfig, DEMO_WORLD)
    make_world(config, world)
    prepare_environment(world)
    sites = [site.name for site in config.sites]
    rows: list[dict[str, Any]] = []
    bar = progress.add_task("runs", total=4 * len(seeds))
    for seed in seeds:
        with tempfile.TemporaryDirectory(prefix="vltune-bench-") as folder:
            for method, cache in condition_sets(seed, Path(folder)):
                overrides = [f"seed={seed}", f"conditions={cache}", *(QUICK if quick else ())]
                job = resolve_job(FEDMPT, overrides)
                place = Path(folder) / cache.stem
                rows.append({"method": method, **_run(job, sites, place, world)})
                progress.advance(bar)
    return rows


def condition_sets(seed: int, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield name and cache of each set; those without a committed cache are written to `folder`."""
    paper = load_conditions(PAPER)
    yield "the paper's conditions", PAPER
    yield "found by a language model", DISCOVERED
    draw = Random(derive_seed(seed, "", 0, "unrelated words"))
    words = draw.sample(UNRELATED, len(paper.names))
    for name, method, conditions in (
        ("unrelated", "unrelated words", words),
        ("neutral", "none (K = 1)", [NEUTRAL]),
    ):
        path = folder / f"{name}.json"
        made_by = {"method": "benchmark control", "date": "2026-11-21"}
        entries = [(word, word) for word in conditions]
        write_json_atomic(
            path, condition_cache_mapping(name, list(paper.classnames), entries, made_by)
        )
        yield method, path


def _run(job: Job, sites: Sequence[str], place: Path, world: Path) -> dict[str, Any]:
    """One federation and its reading on the test set that no site owns."""
    server = run_in_process(job, sites, place / "federation")
    state = collect(server, place)
    test = measure(place, job, world / "global" / "test")["global_test"]
    federated = test["federated"]
    rounds = state["rounds"]
    return {
        "setting": f"{len(sites)} sites, {len(rounds) - 1} rounds",
        "seed": job["seed"],
        **{name: federated[name] for name in ("mAP", "CF1", "OF1")},
        "worst_site_mAP": rounds[-1]["worst_site_mAP"],
        "bytes_up": round(sum(rounds[-1]["bytes_up"].values()) / len(sites)),
        "before_training_mAP": test["before_training"]["mAP"],
        "conditions": ", ".join(entry["name"] for entry in job["conditions"]["conditions"]),
    }
