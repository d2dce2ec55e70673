"""`vltune demo`: the embedded world, FedMPT over its sites through FLARE, the result."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vltune.config import load_config
from vltune.site_config import VARIABLE as SITE_VARIABLE
from vltune_lab.jobs.global_test import VARIABLE as GLOBAL_VARIABLE
from vltune_lab.jobs.kinds import FEDMPT
from vltune_lab.jobs.launch import Options, run_job
from vltune_lab.report import formats
from vltune_lab.report.schema import RunSummary
from vltune_lab.report.summary import load_summary
from vltune_lab.scenes.make import make_world
from vltune_lab.scenes.world import DEMO_WORLD, WorldConfig


@dataclass(frozen=True)
class DemoOptions:
    """Where the demo works.

    Attributes:
        world: Folder of the world; made once, reused.
        out: Folder of all runs.
        name: Name of the run; default: fedmpt-demo and the time.
        seed: Of the run.
        overrides: `key.sub=value` for the job.
    """

    world: Path = Path("build/world")
    out: Path = Path("runs")
    name: str = ""
    seed: int = 7
    overrides: tuple[str, ...] = ()


def run_demo(options: DemoOptions, console: Console) -> RunSummary:
    """Make the world where it is not there yet, run the job, say what happened."""
    began = time.perf_counter()
    config = load_config(WorldConfig, DEMO_WORLD)
    made = make_world(config, options.world)
    console.print(
        f"world: {made.num_images} images in {options.world}"
        f" ({'there already' if made.was_there else f'{time.perf_counter() - began:.0f} s'})",
        highlight=False,
    )
    prepare_environment(options.world)
    name = options.name or f"fedmpt-demo-{time.strftime('%Y%m%d-%H%M%S')}"
    sites = tuple(site.name for site in config.sites)
    console.print(
        f"FedMPT over {len(sites)} sites in FLARE's simulator; start-up takes half a minute",
        highlight=False,
    )
    overrides = (f"seed={options.seed}", *options.overrides)
    folder = run_job(
        FEDMPT, Options(sites=sites, overrides=overrides, name=name, out=options.out), console
    )
    summary = load_summary(folder)
    console.print(result_table(summary))
    console.print(f"report:  {folder}/report.html", highlight=False)
    console.print(f"figures: {folder}/summary.json, {folder}/metrics.jsonl", highlight=False)
    console.print(f"adapter: {folder}/global_adapter.safetensors", highlight=False)
    return summary


def prepare_environment(world: Path) -> None:
    """Tell simulated sites where their files are, and job.py where the shared test set is."""
    os.environ[SITE_VARIABLE] = str(world.absolute() / "{site}" / "vltune_site.yaml")
    os.environ[GLOBAL_VARIABLE] = str(world.absolute() / "global" / "test")


def result_table(summary: RunSummary) -> Table:
    """Zero-shot against federated, by site and on the shared test set; mAP in per cent."""
    table = Table(title="mAP, %")
    for column in ("images of", "zero-shot", "federated", "gain"):
        table.add_column(column, justify="left" if column == "images of" else "right")
    for site in summary.per_site:
        table.add_row(f"{site.site} (validation)", *_cells(site.zero_shot_mAP, site.mAP))
    table.add_section()
    table.add_row("no site (global test)", *_cells(summary.zero_shot_mAP, summary.global_mAP))
    return table


def _cells(before: float | None, after: float | None) -> tuple[str, str, str]:
    return formats.percent(before), formats.percent(after), formats.points(after, before)
