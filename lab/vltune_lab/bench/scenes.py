"""Benchmark `scenes`: how fast scenes are drawn and written, on one core."""

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vltune.config import load_config
from vltune_lab.scenes.library import Library, load_library
from vltune_lab.scenes.make import jpeg_of, scenes_of, write_split
from vltune_lab.scenes.world import DEMO_WORLD, Split, WorldConfig, load_priors

SIZES = (64, 96)
NUM_IMAGES, QUICK_IMAGES = 2000, 20
WARM_UP = 100
DRAWN = "drawn, captioned and JPEG-encoded"
WRITTEN = "the same, written as COCO files"


def run_scenes(seeds: Sequence[int], *, quick: bool = False) -> list[dict[str, Any]]:
    """Draw a split with boxes, captions and JPEG images for each seed and image size.

    Without files, the work is ours alone; with them, the file system's price of a new file is in.

    The process is held to one core meanwhile, where the system can do that.

    Args:
        seeds: Of the worlds.
        quick: Few images, to see that it runs.

    Returns:
        Rows of a protocol file; `images_per_second` is wall time, `per_cpu_second` leaves out what
        other processes took of the core.
    """
    library = load_library()
    count = QUICK_IMAGES if quick else NUM_IMAGES
    cores = _pin(None)
    try:
        return [
            _measure(library, method, seed, size, count)
            for size in SIZES
            for method in (DRAWN, WRITTEN)
            for seed in seeds
        ]
    finally:
        _pin(cores)


def _measure(library: Library, method: str, seed: int, size: int, count: int) -> dict[str, Any]:
    config = replace(load_config(WorldConfig, DEMO_WORLD, []), seed=seed, image_size=size)
    everywhere = dict.fromkeys(load_priors().scenes, 1.0)
    with tempfile.TemporaryDirectory(prefix="vltune-bench-") as folder:
        for name, number in (("warm-up", WARM_UP), ("timed", count)):
            split = Split(name, number, config.test_styles, everywhere)
            wall, cpu = time.perf_counter(), time.process_time()
            if method == WRITTEN:
                write_split(library, config, split, Path(folder) / name)
            else:
                for scene, _ in scenes_of(library, config, split):
                    jpeg_of(scene, config.jpeg_quality)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "method": method,
        "setting": f"{size} px, one core",
        "seed": seed,
        "images": count,
        "seconds": wall,
        "images_per_second": count / wall,
        "images_per_cpu_second": count / cpu,
    }


def _pin(cores: set[int] | None) -> set[int] | None:
    """Hold this process to `cores` (None: to one of its own); return those it had."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores or {max(before)})
    return before
