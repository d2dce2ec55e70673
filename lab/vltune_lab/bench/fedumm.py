"""Benchmark `fedumm`: one federation that answers and draws, against one site with everything.

For each number of sites K and way to deal the pool out: the federation, and the mean of the sites
alone. For each seed: the untrained backbone, and the centralised run of one site with the whole
pool. All with the same passes over the data. Every model is measured on the same global test set;
`kept_...` is (method - zero-shot) / (centralised - zero-shot), `gain_...` is method - zero-shot.
The seed is the world's, the factors' start and the order of samples.

With `mix` half, every other site only answers and the others only draw; the centralised run has
both tasks as ever. Sites alone are left out: one that only draws has no answers to choose its best
model by.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from rich.progress import Progress

from vltune.config import ConfigError, from_mapping, load_config
from vltune.lora_modes import LoraAggregation
from vltune_lab.bench.fedumm_runs import Measured, federate, local_only, untrained
from vltune_lab.bench.journal import Journal, weights_hash
from vltune_lab.jobs.kinds import FEDUMM
from vltune_lab.jobs.resolve import find_weights, resolve_job
from vltune_lab.scenes.make_unified import make_unified_world
from vltune_lab.scenes.unified_world import UNIFIED_WORLD, Pool, UnifiedWorld

JOURNAL = "rows.jsonl"
SITES = (2, 4, 8, 16)
ALPHAS = (0.1, 0.5, 1.0, math.inf)
QUICK = ("federation.rounds=1",)

Mix = Literal["both", "half"]
"""Whether every site has both tasks, or half of them only questions and half only captions."""

Run = Callable[[dict[str, Any], Path, Path], Measured]


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        backbone: Name of the model.
        weights: Its folder.
        sites: Numbers of sites.
        alphas: Of the Dirichlet distribution; inf is IID.
        overrides: Of the job, `key=value`.
        quick: One round on a few images.
        mix: Which tasks the sites have.
    """

    backbone: str
    weights: str
    sites: tuple[int, ...] = SITES
    alphas: tuple[float, ...] = ALPHAS
    overrides: tuple[str, ...] = ()
    quick: bool = False
    mix: Mix = "both"

    def __post_init__(self) -> None:
        if self.mix not in get_args(Mix):
            raise ConfigError(f"--mix: expected {' or '.join(get_args(Mix))}, got {self.mix!r}")
        if any(count < 2 for count in self.sites) or any(not alpha > 0 for alpha in self.alphas):
            raise ConfigError(
                f"expected sites >= 2 and alphas > 0, got {self.sites}, {self.alphas}"
            )


def run_fedumm(
    seeds: Sequence[int], folder: Path, progress: Progress, plan: Plan
) -> list[dict[str, Any]]:
    """Run every method in every setting with every seed.

    Args:
        seeds: Seeds.
        folder: Of the worlds, made where they are not there, and of the rows as they come: a run
            that was stopped goes on after its last row.
        progress: Shows a bar.
        plan: What is run.

    Returns:
        Rows of a protocol file.
    """
    folder = folder.absolute()  # the sites' files lie elsewhere and name it
    journal = Journal(folder / JOURNAL)
    settings = [(count, alpha) for count in plan.sites for alpha in plan.alphas]
    methods = {"fedumm": federate} | ({"local": local_only} if plan.mix == "both" else {})
    bar = progress.add_task("runs", total=len(seeds) * (2 + len(methods) * len(settings)))
    rows = []
    for seed in seeds:
        job = _job(plan, seed)
        found = (find_weights(job[part]["weights"], FEDUMM.yaml) for part in ("backbone", "judge"))
        models = [weights_hash(path) for path in found]

        def row(
            method: str,
            run: Run,
            count: int,
            alpha: float,
            job: dict[str, Any] = job,
            seed: int = seed,
            models: list[str] = models,
        ) -> dict[str, Any]:
            world = make_world(plan, seed, count, alpha, folder)
            facts = {"method": method, "sites": count, "alpha": str(alpha), "job": job}
            facts |= {"quick": plan.quick, "mix": plan.mix, "models": models}
            figures = journal.row(facts, partial(_measure, run, job, world))
            progress.advance(bar)
            setting = {"backbone": plan.backbone, "sites": count, "alpha": _shown(alpha)}
            setting |= {"mix": plan.mix}
            name = f"{count} sites, {_shown(alpha)}" if count > 1 else "everything at one site"
            name += ", half answer and half draw" if count > 1 and plan.mix == "half" else ""
            return {"method": method, "setting": name, "seed": seed} | setting | figures

        start = row("zero-shot", untrained, 1, math.inf)
        central = row("centralised", federate, 1, math.inf)
        trained = [
            row(method, run, count, alpha)
            for count, alpha in settings
            for method, run in methods.items()
        ]
        rows += [start, central, *trained]
        for one in (central, *trained):
            one |= kept(one, start, central)
    return rows


def kept(
    row: dict[str, Any], start: dict[str, Any], central: dict[str, Any]
) -> dict[str, float | None]:
    """Gain, and kept share of the centralised gain: None where centralised training gained none."""
    shares: dict[str, float | None] = {}
    for key in ("vqa", "geneval"):
        gain = central[key] - start[key]
        shares[f"kept_{key}"] = (row[key] - start[key]) / gain if gain > 0 else None
        shares[f"gain_{key}"] = row[key] - start[key]
    return shares


def make_world(plan: Plan, seed: int, count: int, alpha: float, folder: Path) -> Path:
    """Make the world of one setting and seed; returns its folder. Its pool depends on the seed."""
    base = load_config(UnifiedWorld, UNIFIED_WORLD)
    is_iid = math.isinf(alpha)
    world = replace(
        base,
        seed=seed,
        sites=count,
        tasks=("vqa", "captions") if plan.mix == "half" and count > 1 else ("both",),
        partition="iid" if is_iid else "dirichlet",
        alpha=base.alpha if is_iid else alpha,
        **(
            {"pool": Pool(200, 80, 80), "global_test": 8, "global_prompts": 1} if plan.quick else {}
        ),
    )
    of_tasks = "-half" if plan.mix == "half" and count > 1 else ""
    place = folder / f"{count}-{_shown(alpha)}-{seed}{of_tasks}{'-quick' if plan.quick else ''}"
    make_unified_world(world, place)
    return place


def _shown(alpha: float) -> str:
    return "IID" if math.isinf(alpha) else f"alpha {alpha:g}"


def _job(plan: Plan, seed: int) -> dict[str, Any]:
    overrides = [
        f"seed={seed}",
        f"backbone.model={plan.backbone}",
        f"backbone.weights={Path(plan.weights).absolute()}",
        "federation.tensorboard=false",
        "federation.min_sites=1",
        *(QUICK if plan.quick else ()),
        *plan.overrides,
    ]
    job = resolve_job(FEDUMM, overrides)
    mode = from_mapping(LoraAggregation, job["aggregation"], "aggregation").description
    if mode.personal:
        raise ConfigError(
            f"aggregation mode {mode.name} leaves factors at the sites: no global model is there "
            "to measure on the global test set. Take fedavg, ffa, svd, fedex, stack or hetlora."
        )
    return job


def _measure(run: Run, job: dict[str, Any], world: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="vltune-bench-") as place:
        measured = run(job, world, Path(place))
    metrics = measured.metrics
    families = {key: value for key, value in metrics.items() if key.startswith("geneval_")}
    return {
        "vqa": metrics["vqa_accuracy"],
        "geneval": metrics["geneval"],
        "generation_loss": metrics["generation_loss"],
        **families,
        "bytes_up": measured.bytes_up,
        "exactness_error": measured.exactness_error,
        "task_cosine_first": measured.cosines[0] if measured.cosines else None,
        "task_cosine_last": measured.cosines[-1] if measured.cosines else None,
        "seconds": measured.seconds,
    }
