"""Benchmark `attacks`: FedMPT with malicious sites under every robust rule and the plain mean.

Whole federations in one process (the same numbers as under FLARE's simulator) over eight small
sites of the embedded world: the demo's four sites, each twice with other images; twelve classes and
three conditions, so that a run takes seconds. The last one or two sites are malicious in every
round. Rules are told to withstand two whatever happens, as one who does not know the attack would.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import Progress

from vltune.conditions import condition_cache_mapping
from vltune.config import ConfigError, load_config
from vltune_lab.bench.attacked_runs import GlobalTest, run_attacked
from vltune_lab.bench.attackers import Attack
from vltune_lab.bench.journal import Journal
from vltune_lab.jobs.kinds import FEDMPT
from vltune_lab.jobs.resolve import Job, resolve_job
from vltune_lab.scenes.make import make_world
from vltune_lab.scenes.world import DEMO_WORLD, WorldConfig

NUM_SITES = 8
CLASSES = (
    "bird", "dog", "clock", "person", "cup", "bicycle",
    "book", "truck", "horse", "umbrella", "bottle", "cat",
)  # fmt: skip
"""The most frequent ones of the world: each site has some of each in few images."""
NUM_CONDITIONS = 3
TARGET = "umbrella"
TRAIN, VALIDATION, TEST = 64, 16, 400
QUICK_IMAGES = (8, 4, 12)
JOURNAL = "rows.jsonl"
SETTINGS = ("federation.rounds=4", "training.local_epochs=2", "federation.tensorboard=false")
QUICK = ("federation.rounds=1", "training.local_epochs=1")
NUM_WITHSTOOD = 2

RULES: dict[str, dict[str, Any]] = {
    "none": {},
    "multi_krum": {"rule": "multi_krum", "num_malicious": NUM_WITHSTOOD},
    "trimmed_mean": {"rule": "trimmed_mean", "num_malicious": NUM_WITHSTOOD},
    "median": {"rule": "median"},
    "cosine": {"rule": "cosine"},
    "clip": {"rule": "clip", "clip_multiple": 1.0},
    "krum": {"rule": "krum", "num_malicious": NUM_WITHSTOOD},
}
ATTACKS = ("sign_flip", "backdoor", "label_flip", "noise")
COUNTS = (2, 1)
NOBODY = "no attacker"


@dataclass(frozen=True)
class Plan:
    """What is run: every rule against every attack with every seed.

    Attributes:
        seeds: Run seeds.
        rules: Names in `RULES`.
        kinds: Of attack; without attackers is always run.
        counts: Of malicious sites.
        quick: One round on a few images.
    """

    seeds: tuple[int, ...] = (7,)
    rules: tuple[str, ...] = tuple(RULES)
    kinds: tuple[str, ...] = ATTACKS
    counts: tuple[int, ...] = COUNTS
    quick: bool = False

    def __post_init__(self) -> None:
        unknown = sorted({*self.rules} - RULES.keys()) + sorted({*self.kinds} - {*ATTACKS})
        if unknown or not self.seeds or not {*self.counts} <= {*COUNTS}:
            raise ConfigError(
                f"unknown {unknown}, seeds {self.seeds}, counts {self.counts}; rules are "
                f"{', '.join(RULES)}; attacks {', '.join(ATTACKS)}; counts {COUNTS}"
            )

    def situations(self) -> Iterator[tuple[str, Attack | None]]:
        """Every situation by name: nobody, then each attack."""
        yield NOBODY, None
        sites = site_names()
        for count in self.counts:
            for kind in self.kinds:
                # The backdoor's factor puts the attackers' model in the place of the mean.
                factor = len(sites) / count if kind == "backdoor" else 10.0
                attack = Attack(kind, sites[-count:], factor, TARGET)  # type: ignore[arg-type] # of ATTACKS
                yield f"{kind}, {count} of {len(sites)}", attack


def run_attacks(folder: Path, progress: Progress, plan: Plan) -> list[dict[str, Any]]:
    """Run every attack against every rule.

    Args:
        folder: Of the world, made where it is not there, and of the rows as they come: a run that
            was stopped goes on after its last row.
        progress: Shows a bar.
        plan: What is run.

    Returns:
        Rows of a protocol file.
    """
    folder = folder.absolute()
    world = make_attacked_world(folder, quick=plan.quick)
    journal = Journal(folder / JOURNAL)
    test = GlobalTest(world, job_of(plan.seeds[0], "none", quick=plan.quick), TARGET)
    situations = list(plan.situations())
    bar = progress.add_task("runs", total=len(plan.seeds) * len(situations) * len(plan.rules))
    rows = []
    for seed in plan.seeds:
        for setting, attack in situations:
            for rule in plan.rules:
                job = job_of(seed, rule, quick=plan.quick)
                common = {"method": rule, "setting": setting, "seed": seed}
                size = (NUM_SITES, TRAIN, VALIDATION, TEST)
                facts = common | {"quick": plan.quick, "world": size, "job": job}
                measure = partial(run_attacked, job, attack, site_names(), world, test)
                rows.append(common | journal.row(facts, measure))
                progress.advance(bar)
    return rows


def site_names() -> tuple[str, ...]:
    """site-1 to site-8."""
    return tuple(f"site-{number}" for number in range(1, NUM_SITES + 1))


def job_of(seed: int, rule: str, *, quick: bool) -> Job:
    """FedMPT's job under one rule."""
    job = resolve_job(FEDMPT, [f"seed={seed}", *SETTINGS, *(QUICK if quick else ())])
    enough = {"min_sites": NUM_SITES - 1, "robust": RULES[rule]}
    cache = job["conditions"]
    chosen = [(one["name"], one["gloss"]) for one in cache["conditions"][:NUM_CONDITIONS]]
    conditions = condition_cache_mapping("attacks", CLASSES, chosen, cache["made_by"])
    return job | {
        "federation": job["federation"] | enough,
        "conditions": conditions,
        "classnames": list(CLASSES),
    }


def make_attacked_world(folder: Path, *, quick: bool) -> Path:
    """Make the world of eight sites; returns its folder."""
    train, validation, test = QUICK_IMAGES if quick else (TRAIN, VALIDATION, TEST)
    base = load_config(WorldConfig, DEMO_WORLD)
    sites = tuple(
        replace(base.sites[number % len(base.sites)], name=name, train=train, validation=validation)
        for number, name in enumerate(site_names())
    )
    world = replace(base, sites=sites, test=test, shifted=0)
    place = folder / ("world-quick" if quick else "world")
    make_world(world, place)
    return place
