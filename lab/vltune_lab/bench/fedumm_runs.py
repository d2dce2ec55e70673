"""The runs of benchmark `fedumm`: federations, sites alone, one site with everything, no training.

Whatever was trained, the model is measured once on the world's global test set.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from vltune.algorithms.fedumm import build_participant
from vltune.algorithms.lora_site import LoraParticipant
from vltune.files import write_bytes_atomic
from vltune.flare.persistor import LAST_FILE, read_adapter
from vltune.site_config import AnySiteConfig, read_site_config
from vltune_lab.bench.run_state import by_round, in_a_federation_of, last_round
from vltune_lab.jobs.in_process import run_in_process
from vltune_lab.jobs.resolve import Job

SITE_FILE = "vltune_site.yaml"
GLOBAL = "global"
VQA_FILES = ("questions", "annotations", "images")

Build = Callable[[Mapping[str, Any], AnySiteConfig, str, Path, int], LoraParticipant]


@dataclass(frozen=True)
class Measured:
    """What came of one method.

    Attributes:
        metrics: On the global test set; the mean over the sites for models trained alone.
        seconds: Wall time of the runs, reading data and encoding what no earlier run of the same
            world has encoded included.
        bytes_up: Of a site in the last round; None where nothing travels.
        exactness_error: Of the last round, where the server has one.
        cosines: Mean `task_cosine` of the sites in each round.
    """

    metrics: dict[str, float]
    seconds: float
    bytes_up: float | None = None
    exactness_error: float | None = None
    cosines: tuple[float, ...] = ()


def site_names(world: Path) -> tuple[str, ...]:
    """Sites of a world, sorted as numbers."""
    found = [path.parent.name for path in world.glob(f"site-*/{SITE_FILE}")]
    return tuple(sorted(found, key=lambda name: int(name.removeprefix("site-"))))


def write_files(
    world: Path, place: Path, *, cache: Path | None = None, can_draw: bool = True
) -> Path:
    """Write each site's file for one run: own state, no test part.

    Also that of `global`, whose validation part is the global test set.

    Args:
        world: The world.
        place: Of the run.
        cache: Of frozen features; None: the world's, which later runs find filled.
        can_draw: False leaves captions and prompts out of the global test set.

    Returns:
        The files' path with `{site}` for the name, as in VLTUNE_SITE_CONFIG.
    """
    for name in site_names(world):
        content = yaml.safe_load((world / name / SITE_FILE).read_text())
        del content["test"]
        for part in ("train", "validation"):
            _make_absolute(content[part], world / name)
        content["validation"].pop("prompts", None)  # pictures are judged once, at the end
        _write(content, cache or world / "cache", place, name)
    test: dict[str, Any] = {
        "vqa": {
            "questions": "questions.json",
            "annotations": "annotations.json",
            "images": "images",
            "pattern": "%012d.jpg",
        },
    }
    if can_draw:
        test |= {"captions": {"files": ["captions.jsonl"]}, "prompts": "prompts.jsonl"}
    _make_absolute(test, world / GLOBAL / "test")
    first = yaml.safe_load((place / "sites" / site_names(world)[0] / SITE_FILE).read_text())
    _write(first | {"validation": test}, cache or world / "cache", place, GLOBAL)
    return place / "sites" / "{site}" / SITE_FILE


def _make_absolute(part: dict[str, Any], folder: Path) -> None:
    for key in VQA_FILES:
        if "vqa" in part:
            part["vqa"][key] = str(folder / part["vqa"][key])
    if "captions" in part:
        part["captions"]["files"] = [str(folder / name) for name in part["captions"]["files"]]
    if "prompts" in part:
        part["prompts"] = str(folder / part["prompts"])


def _write(content: dict[str, Any], cache: Path, place: Path, name: str) -> None:
    own = {
        "site": name,
        "cache_dir": str(cache),
        "state_dir": str(place / "state"),
    }
    path = place / "sites" / name / SITE_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(path, yaml.safe_dump(content | own).encode())


def federate(job: Job, world: Path, place: Path) -> Measured:
    """All sites together."""
    files = write_files(world, place)
    names = site_names(world)
    began = time.perf_counter()
    whole = in_a_federation_of(job, len(names))
    server = run_in_process(whole, names, place / "run", site_files=files)
    seconds = time.perf_counter() - began
    last = last_round(server)
    cosines = tuple(
        sum(one.values()) / len(one) for one in by_round(server, "task_cosine").values()
    )
    metrics = on_global_test(job, place, read_adapter(server / LAST_FILE)[0])
    bytes_up = sum(last["bytes_up"].values()) / len(names) if len(names) > 1 else None
    return Measured(metrics, seconds, bytes_up, last.get("exactness_error"), cosines)


def local_only(job: Job, world: Path, place: Path) -> Measured:
    """Each site alone, with as many rounds; the mean of their models' figures."""
    files = write_files(world, place)
    alone = in_a_federation_of(job, 1)
    seconds = 0.0
    found = []
    for name in site_names(world):
        began = time.perf_counter()
        server = run_in_process(alone, (name,), place / f"run-{name}", site_files=files)
        seconds += time.perf_counter() - began
        found.append(on_global_test(alone, place, read_adapter(server / LAST_FILE)[0]))
    mean = {key: sum(one[key] for one in found) / len(found) for key in found[0]}
    return Measured(mean, seconds)


def untrained(job: Job, world: Path, place: Path) -> Measured:
    """The backbone as it is: B is zero."""
    write_files(world, place)
    return Measured(on_global_test(job, place, None), 0.0)


def on_global_test(
    job: Job, place: Path, adapter: dict[str, Tensor] | None, build: Build = build_participant
) -> dict[str, float]:
    """`vqa_accuracy`, `generation_loss`, `geneval` and its families of one global adapter."""
    state = place / "measured"
    state.mkdir(exist_ok=True)
    site = read_site_config(place / "sites" / GLOBAL / SITE_FILE)
    threads = len(os.sched_getaffinity(0))
    participant = build(job, site, GLOBAL, state, threads)
    start = participant.prepare(lambda: False).initial
    participant.lora.receive(adapter or start)
    participant.lora.model.eval()
    return participant.task.measure_validation()
