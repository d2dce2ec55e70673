"""Benchmark `fedvlm`: personalised LoRA against its rivals on the preference world.

Whole federations in one process (the same numbers as under FLARE's simulator), once for each way to
deal the world out, method and seed. Figures are exact match of each site's final model on the
site's own held-out test set; each site counts the same. `local only` is each site alone,
`centralised` one model of everybody's data: both with the passes and schedule of the federations,
and a learning rate of their own. The seed is the world's, the factors' start and the order of
samples.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import Progress

from vltune.config import ConfigError, load_config
from vltune_lab.bench.fedvlm_runs import (
    Measured,
    Sites,
    centralised,
    federate,
    local_only,
    untrained,
)
from vltune_lab.bench.journal import Journal, weights_hash
from vltune_lab.jobs.kinds import FEDVLM
from vltune_lab.jobs.resolve import resolve_job
from vltune_lab.scenes.make_preference import make_preference_world
from vltune_lab.scenes.preference_world import PREFERENCE_WORLD, PreferenceWorld

MODES = {
    "FedAvg LoRA": "fedavg",
    "FFA-LoRA": "ffa",
    "FedSA-LoRA": "fedsa",
    "pLoRA (FedVLM)": "plora",
    "svd": "svd",
    "fedex": "fedex",
}


class Setting(NamedTuple):
    """A way to deal the world out."""

    name: str
    partition: str
    alpha: float = 0.5


SETTINGS = (
    Setting("house style", "house_style"),
    Setting("Dirichlet 0.1", "dirichlet", 0.1),
    Setting("Dirichlet 0.5", "dirichlet", 0.5),
    Setting("IID", "iid"),
)


def settings_of(text: str) -> tuple[Setting, ...]:
    """Settings by their names, comma-separated; all of them for an empty text.

    Raises:
        ConfigError: A name that is none of them.
    """
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    known = {setting.name: setting for setting in SETTINGS}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ConfigError(f"--settings: unknown {unknown}; known: {', '.join(known)}")
    return tuple(known[name] for name in wanted) or SETTINGS


# Images of a site: fewer than the world's own, so that all runs take hours and not days.
TRAIN, VALIDATION, TEST = 60, 3, 80
JOURNAL = "rows.jsonl"
ALONE = "training.learning_rate=5e-3"
"""At the job's 1e-2, which is best for the federations, a single model's training breaks down now
and then: nothing averages its steps. Both were chosen on seed 7, which is not in the table."""
QUICK = ("federation.rounds=1", "training.local_epochs=1")
QUICK_IMAGES = (8, 4, 4)


def run_fedvlm(
    seeds: Sequence[int],
    folder: Path,
    progress: Progress,
    *,
    quick: bool = False,
    settings: Sequence[Setting] = SETTINGS,
) -> list[dict[str, Any]]:
    """Run every method in every setting with every seed.

    Args:
        seeds: Seeds.
        folder: Of the worlds, made where they are not there, and of the rows as they come: a run
            that was stopped goes on after its last row.
        progress: Shows a bar.
        quick: One round on a few images, to see that it runs.
        settings: Ways to deal the world out.

    Returns:
        Rows of a protocol file; `accuracy_<site>` beside the mean and the worst site.
    """
    rows: list[dict[str, Any]] = []
    folder = folder.absolute()  # the sites' files lie elsewhere and name it
    journal = Journal(folder / JOURNAL)
    bar = progress.add_task("runs", total=len(settings) * len(seeds) * (len(MODES) + 3))
    weights = weights_hash(resolve_job(FEDVLM)["backbone"]["weights"])
    for setting in settings:
        for seed in seeds:
            sites = Sites(make_world(setting, seed, folder, quick=quick))
            for method, run in methods(seed, quick=quick).items():
                common = {"method": method, "setting": setting.name, "seed": seed}
                facts = common | {"quick": quick, "weights": weights}
                measured = journal.row(facts, partial(_measure, run, sites))
                rows.append(common | measured)
                progress.advance(bar)
    return rows


def make_world(setting: Setting, seed: int, folder: Path, *, quick: bool) -> Path:
    """Make the world of one setting and seed; returns its folder."""
    train, validation, test = QUICK_IMAGES if quick else (TRAIN, VALIDATION, TEST)
    base = load_config(PreferenceWorld, PREFERENCE_WORLD)
    world = replace(
        base,
        seed=seed,
        partition=setting.partition,
        alpha=setting.alpha,
        test=1,  # the global test set has no use here
        sites=tuple(
            replace(site, train=train, validation=validation, test=test) for site in base.sites
        ),
    )
    place = folder / f"{setting.name.replace(' ', '-')}-{seed}{'-quick' if quick else ''}"
    make_preference_world(world, place)
    return place


def methods(seed: int, *, quick: bool) -> dict[str, Callable[[Sites, Path], Measured]]:
    """Every method by name."""
    common = [f"seed={seed}", "federation.tensorboard=false", *(QUICK if quick else ())]

    def job(mode: str, *others: str) -> dict[str, Any]:
        return resolve_job(FEDVLM, [*common, f"aggregation.mode={mode}", *others])

    runs: dict[str, Callable[[Sites, Path], Measured]] = {
        "zero-shot": lambda sites, place: untrained(job("fedavg"), sites, place),
        "local only": lambda sites, place: local_only(job("fedavg", ALONE), sites, place),
    }
    for method, mode in MODES.items():
        runs[method] = lambda sites, place, mode=mode: federate(job(mode), sites, place)
    runs["centralised"] = lambda sites, place: centralised(job("fedavg", ALONE), sites, place)
    return runs


def _measure(run: Callable[[Sites, Path], Measured], sites: Sites) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="vltune-bench-") as place:
        return _figures(run(sites, Path(place)))


def _figures(measured: Measured) -> dict[str, Any]:
    values = [figures["accuracy"] for figures in measured.test.values()]
    preferred = [figures.get("preference_accuracy", math.nan) for figures in measured.test.values()]
    return {
        "accuracy": math.fsum(values) / len(values),
        "worst_site": min(values),
        "preference_accuracy": math.fsum(preferred) / len(preferred),
        "bytes_up": measured.bytes_up,
        "bytes_down": measured.bytes_down,
        "exactness_error": measured.exactness_error,
        "seconds": measured.seconds,
        **{f"accuracy_{site}": figures["accuracy"] for site, figures in measured.test.items()},
    }
