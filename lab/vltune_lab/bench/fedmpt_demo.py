"""Benchmark `fedmpt-demo`: the demo's runs over several seeds, through FLARE's simulator."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors.torch import load_file

from vltune.algorithms.multilabel_site import hash_tensors
from vltune_lab.demo import DemoOptions, run_demo
from vltune_lab.report.schema import GlobalTest, Reading, RunSummary

QUICK = ("federation.rounds=1", "training.local_epochs=1")


def run_fedmpt_demo(
    seeds: Sequence[int], world: Path, console: Console, *, quick: bool = False
) -> list[dict[str, Any]]:
    """Run the demo once a seed.

    Args:
        seeds: Run seeds.
        world: Folder of the demo world; made where it is not there.
        console: Where the runs say what happens.
        quick: One round, to see that it runs.

    Returns:
        Rows of a protocol file: FedMPT, itself before training, and CLIP's two zero-shot readings.
    """
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        with tempfile.TemporaryDirectory(prefix="vltune-bench-") as folder:
            options = DemoOptions(world, Path(folder), f"seed-{seed}", seed, QUICK if quick else ())
            summary = run_demo(options, console)
            adapter = load_file(Path(folder) / f"seed-{seed}" / "global_adapter.safetensors")
            rows += _rows(summary, seed, hash_tensors(adapter))
    return rows


def _rows(summary: RunSummary, seed: int, adapter_hash: str) -> list[dict[str, Any]]:
    test = summary.global_test
    assert isinstance(test, GlobalTest)  # the demo always has one
    setting = f"{summary.sites} sites, {summary.rounds} rounds"
    zero_shot = [site.zero_shot_mAP for site in summary.per_site]
    known = [value for value in zero_shot if value is not None]
    common = {"setting": setting, "seed": seed}
    overheads = [entry.overhead_seconds for entry in summary.per_round if entry.round > 0]
    return [
        {"method": "FedMPT", **common, **_figures(test.federated),
         "worst_site_mAP": summary.worst_site_mAP,
         "bytes_up": summary.bytes_up_per_site_per_round, "seconds": summary.wall_seconds,
         "overhead_seconds_per_round": sum(overheads) / max(1, len(overheads)),
         "adapter_sha256": adapter_hash},
        {"method": "FedMPT before training", **common, **_figures(test.before_training)},
        {"method": "zero-shot CLIP, pooled", **common, **_figures(test.zero_shot_pooled)},
        {"method": "zero-shot CLIP, patches", **common, **_figures(test.zero_shot_patch),
         "worst_site_mAP": min(known) if known else None},
    ]  # fmt: skip


def _figures(reading: Reading | None) -> dict[str, float | None]:
    if reading is None:
        return {}
    return {"mAP": reading.mAP, "CF1": reading.CF1, "OF1": reading.OF1}
