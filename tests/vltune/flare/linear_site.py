"""A real participant without images: a linear multi-label model on numbers read from a file.

Shared: weight (C, D) and bias (C,). Personal: offset (D,), added to the inputs of this site. The
job's `trouble` ({site: [round, kind]}, or a list of such pairs) makes a site misbehave, to test
what the others see of it; `pace_seconds` makes a round last that long, and `training.txt` in the
state folder names it.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

import vltune
from vltune.evaluation import evaluate_scores
from vltune.parameters import LocalUpdate, ParameterError, spec_of
from vltune.participant import Evaluation, Handshake, ShouldStop, TrainingStopped, never
from vltune.seed import derive_seed, torch_generator
from vltune.site_config import SiteConfig

NUM_FEATURES, NUM_CLASSES = 5, 3
MARKER = 0.123456789
"""Value of the personal tensor at the start: its bytes must never be on the wire."""


class LinearSite:
    """One site."""

    def __init__(self, job: Mapping[str, Any], site: SiteConfig, name: str, state: Path) -> None:
        self.job, self.site, self.name = job, site, name
        self.offset, self.state = torch.full((5,), MARKER), state
        (state / "package.txt").write_text(vltune.__file__)
        with (state / "tasks.txt").open("a") as stream:
            stream.write(f"{os.getpid()} built\n")

    def prepare(self, should_stop: ShouldStop) -> Handshake:
        self._trouble(-1)
        self.x, self.y = self._read(self.site.train.annotations)
        self.vx, self.vy = self._read(self.site.validation.annotations)
        if not len(self.x):
            raise ParameterError(f"{self.site.train.annotations}: no examples. Add some.")
        seed = derive_seed(self.job["seed"], "model", 0)
        generator = torch_generator(seed + (self.job.get("other_start") == self.name))
        initial = {"bias": torch.zeros(3), "weight": torch.randn(3, 5, generator=generator)}
        digest = hashlib.sha256(b"".join(v.numpy().tobytes() for v in initial.values()))
        facts = {"vltune": vltune.__version__, "class_list": self.job.get("classes", "abc")}
        return Handshake(
            spec_of(initial), initial, digest.hexdigest(), len(self.x), len(self.vx), facts
        )

    def evaluate(self, shared: dict[str, Tensor], should_stop: ShouldStop = never) -> Evaluation:
        scores = torch.sigmoid((self.vx + self.offset) @ shared["weight"].T + shared["bias"])
        result = evaluate_scores(
            scores.double().numpy(), self.vy.numpy().astype(np.int8), min_cell=2, min_interval=2
        )
        right = ((scores > 0.5) == (self.vy > 0)).float().mean()
        metrics = {"mAP": float(result.metrics.mAP), "accuracy": float(right)}
        return Evaluation(metrics, result.histograms.to_tensors())

    def train(
        self, shared: dict[str, Tensor], round_number: int, should_stop: ShouldStop
    ) -> LocalUpdate:
        self._trouble(round_number, should_stop)
        (self.state / "training.txt").write_text(f"{round_number}")
        _wait(self.job.get("pace_seconds", 0.0), should_stop)
        weight, bias = shared["weight"].clone(), shared["bias"].clone()
        generator = torch_generator(derive_seed(self.job["seed"], self.name, round_number))
        losses = []
        for index in torch.randperm(len(self.x), generator=generator).tolist():
            if should_stop():
                raise TrainingStopped("stopped in the batch loop")
            x = self.x[index] + self.offset
            error = torch.sigmoid(weight @ x + bias) - self.y[index]
            losses.append(float(error.square().mean()))
            step = self.job["learning_rate"] * error
            self.offset = self.offset - 0.1 * (step @ weight)
            weight, bias = weight - torch.outer(step, x), bias - step
        tensors = self._spoil({"bias": bias, "weight": weight}, round_number)
        metrics = {"loss": sum(losses) / len(losses), "steps": float(len(losses))}
        return LocalUpdate(tensors, len(self.x), metrics | {"seconds_train": 0.0})

    def finish(
        self, shared: dict[str, Tensor], should_stop: ShouldStop = never
    ) -> dict[str, float]:
        (self.state / "finished.txt").write_text(str(float(shared["bias"].sum())))
        return {"test_accuracy": 0.25}

    def personal_state(self) -> dict[str, Tensor]:
        return {"offset": self.offset}

    def load_personal_state(self, tensors: dict[str, Tensor]) -> None:
        self.offset = tensors["offset"]

    def _read(self, path: Path) -> tuple[Tensor, Tensor]:
        content = json.loads(path.read_text())
        return torch.tensor(content["x"]), torch.tensor(content["y"])

    def _kind(self, round_number: int) -> str:
        given = self.job.get("trouble", {}).get(self.name, [])
        pairs = [given] if given and isinstance(given[0], int) else given
        return next((str(kind) for when, kind in pairs if when == round_number), "")

    def _trouble(self, round_number: int, should_stop: ShouldStop = lambda: False) -> None:
        kind = self._kind(round_number)
        if kind == "exit":
            os._exit(9)
        if kind == "raise":
            raise RuntimeError("patient 4711 has a secret")
        if kind == "value":
            raise ParameterError(f"{self.site.train.annotations}: row 3 is wrong. Mend it.")
        if kind == "slow":
            _wait(self.job.get("slow_seconds", 30.0), should_stop)
        if kind == "allocate":
            torch.ones(1 << 50)

    def _spoil(self, tensors: dict[str, Tensor], round_number: int) -> dict[str, Tensor]:
        kind = self._kind(round_number)
        if kind == "nan":
            tensors["bias"][1] = torch.nan
        if kind == "leak":
            tensors["offset"] = self.offset
        if kind == "flip":
            tensors = {name: -10 * value for name, value in tensors.items()}
        if kind == "huge":
            tensors["weight"] = tensors["weight"] * 1e6
        return tensors


def _wait(seconds: float, should_stop: ShouldStop) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if should_stop():
            raise TrainingStopped("stopped while slow")
        time.sleep(0.02)


def build_participant(
    job: Mapping[str, Any], site: SiteConfig, site_name: str, state_dir: Path, threads: int
) -> LinearSite:
    """Build the site; the executor finds this function by its dotted path."""
    torch.set_num_threads(threads)
    return LinearSite(job, site, site_name, state_dir)


def write_site(folder: Path, name: str, num_examples: int, seed: int) -> None:
    """Write a site's numbers and its vltune_site.yaml."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(NUM_FEATURES, NUM_CLASSES, generator=torch.Generator().manual_seed(99))
    folder.mkdir(parents=True)
    for split, count in (("train", num_examples), ("validation", 41)):
        x = torch.randn(count, NUM_FEATURES, generator=generator)
        y = (x @ truth > 0).long()
        (folder / f"{split}.json").write_text(json.dumps({"x": x.tolist(), "y": y.tolist()}))
    content = {
        "site": name,
        "threads": 1,
        "train": {"images": "images", "annotations": "train.json"},
        "validation": {"images": "images", "annotations": "validation.json"},
    }
    (folder / "vltune_site.yaml").write_text(yaml.safe_dump(content))


def make_job(**changes: Any) -> dict[str, Any]:
    """A job of the linear method; `federation` keys are merged."""
    federation = {
        "rounds": 2,
        "min_sites": 2,
        "round_timeout_seconds": 60.0,
        "prepare_timeout_seconds": 60.0,
        "tensorboard": False,
        "doctor": False,  # it knows no linear method, and imports much
    }
    federation |= changes.pop("federation", {})
    return {
        "name": "linear",
        "method": "linear",
        "seed": 34,
        "participant": "linear_site.build_participant",
        "learning_rate": 0.5,
        "federation": federation,
        **changes,
    }
