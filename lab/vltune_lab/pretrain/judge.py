"""`vltune pretrain judge`: train the detector that judges pictures of the world."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from vltune.backbones.center_detector import (
    ARCHITECTURE,
    CenterDetector,
    DetectorConfig,
    DetectorOutput,
)
from vltune.config import to_mapping
from vltune_lab.pretrain.judge_recipe import JudgeRecipe
from vltune_lab.pretrain.judge_stream import OWN, JudgeBatch, JudgeStream
from vltune_lab.pretrain.loop import follow_schedule, run_to_end, step_line, take_step
from vltune_lab.pretrain.run_state import RunState, decayed_groups
from vltune_lab.pretrain.stream import make_loader
from vltune_lab.scenes.library import Library, load_library
from vltune_lab.scenes.questions import COLOURS

FOCUS = 2
"""Exponent of the focal loss on cells (Zhou et al. 2019, Eq. 1: alpha 2, beta 4)."""
SPARE = 4


@dataclass
class JudgeRun(RunState):
    """A run of judge-compact; `modules` holds `model`.

    Attributes:
        config: Of the detector.
    """

    config: DetectorConfig | None = None

    @property
    def model(self) -> CenterDetector:
        """The model in training."""
        return self.modules["model"]


def start(recipe: JudgeRecipe, checkpoint: Path, library: Library, device: str) -> JudgeRun:
    """Build the state, continuing from the checkpoint where there is one."""
    torch.manual_seed(recipe.seed)
    config = DetectorConfig(
        ARCHITECTURE, recipe.image_size, recipe.widths, library.classnames, COLOURS
    )
    model = CenterDetector(config).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        decayed_groups(model, recipe.weight_decay), lr=recipe.learning_rate, fused=True
    )
    state = JudgeRun({"model": model}, optimizer, to_mapping(recipe), config=config)
    if checkpoint.exists():
        state.load(checkpoint)
    return state


def losses(output: DetectorOutput, batch: JudgeBatch) -> dict[str, Tensor]:
    """All terms: where middles are, and class, colour and box of the cells that have an owner.

    The first is the focal loss of Zhou et al. 2019, Eq. 1, divided by the number of objects; the
    others are means over owned cells, weighted by their heat.
    """
    is_middle = batch.heat == 1
    logits = output.middles
    share = logits.sigmoid()
    hit = F.logsigmoid(logits) * (1 - share) ** FOCUS * is_middle
    miss = F.logsigmoid(-logits) * share**FOCUS * (1 - batch.heat) ** SPARE * ~is_middle
    owned = (batch.classes >= 0) & (batch.heat >= OWN)
    weight = batch.heat * owned
    total = weight.sum().clamp(min=1.0)
    classes = F.cross_entropy(output.classes, batch.classes.clamp(min=0), reduction="none")
    colours = F.cross_entropy(output.colours, batch.colours, reduction="none")
    boxes = (output.boxes - batch.boxes).abs().sum(dim=1)
    return {
        "middles": -(hit + miss).sum() / is_middle.sum().clamp(min=1),
        "classes": (classes * weight).sum() / total,
        "colours": (colours * weight).sum() / total,
        "boxes": (boxes * weight).sum() / total,
    }


def pretrain(recipe: JudgeRecipe, *, work: Path, device: str = "cpu", workers: int = 1) -> JudgeRun:
    """Train to `recipe.steps`, checkpointing in `work`; called again, it continues.

    Args:
        recipe: The recipe.
        work: Holds checkpoint.pt and log.jsonl.
        device: cpu or cuda.
        workers: Rendering processes.
    """
    work.mkdir(parents=True, exist_ok=True)
    library = load_library(styles=recipe.styles)
    state = start(recipe, work / "checkpoint.pt", library, device)
    stream = JudgeStream(library, recipe)
    stream.first_step = state.step
    state.model.train()
    lines = _steps(state, make_loader(stream, workers), recipe, device)
    run_to_end("pretrain judge", state, lines, work, recipe.checkpoint_every)
    state.model.eval()
    return state


def _steps(
    state: JudgeRun, batches: Iterator[JudgeBatch], recipe: JudgeRecipe, device: str
) -> Iterator[dict[str, float]]:
    weights = {"middles": 1.0, "classes": recipe.class_weight, "colours": 1.0, "boxes": 1.0}
    while state.step < recipe.steps:
        began = time.perf_counter()
        follow_schedule(state, recipe)
        batch = JudgeBatch(*(item.to(device) for item in next(batches)))
        pixels = (batch.images.float() / 255).to(memory_format=torch.channels_last)
        terms = losses(state.model(pixels), batch)
        loss = sum(weights[name] * value for name, value in terms.items())
        take_step(state, loss, list(state.model.parameters()), 5.0)
        figures = {"loss": loss.item(), **{name: value.item() for name, value in terms.items()}}
        yield step_line(state, began, recipe.batch_size, figures)
