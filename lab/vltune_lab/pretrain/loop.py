"""The loop around a pre-training run: progress bar, log, checkpoints."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn

from vltune_lab.pretrain.recipe import Schedule, learning_rate_at
from vltune_lab.pretrain.run_state import RunState

LOG_EVERY = 20


def follow_schedule(state: RunState, recipe: Schedule) -> None:
    """Set the learning rate of the step to come, in place."""
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate_at(state.step, recipe)


def take_step(
    state: RunState, loss: Tensor, parameters: Sequence[nn.Parameter], max_norm: float = 1.0
) -> None:
    """One step of the optimiser on a loss, its gradients clipped; `state.step` counts up."""
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, max_norm)
    state.optimizer.step()
    state.step += 1


def step_line(
    state: RunState, began: float, batch_size: int, figures: Mapping[str, float]
) -> dict[str, float]:
    """The log's line of the step that was taken; its time is counted.

    Args:
        state: After the step.
        began: `time.perf_counter()` before it.
        batch_size: Images of the step.
        figures: Loss and terms.
    """
    seconds = time.perf_counter() - began
    state.seconds += seconds
    return {"step": state.step, **figures, "images_per_second": batch_size / seconds}


def run_to_end(
    name: str, state: RunState, lines: Iterator[dict[str, float]], work: Path, checkpoint_every: int
) -> None:
    """Take every step of `lines`; write log.jsonl, checkpoint.pt and at the end recipe.json.

    Args:
        name: Shown before the bar.
        state: Its `step` counts up as `lines` is consumed.
        lines: One line of figures a step; `loss` is shown.
        work: Folder of the run.
        checkpoint_every: Steps between checkpoints; the last step has one in any case.
    """
    columns = (
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    steps = state.recipe["steps"]
    with Progress(*columns, refresh_per_second=1) as progress:
        task = progress.add_task("", total=steps, completed=state.step, loss="")
        for line in lines:
            progress.update(task, completed=state.step, loss=f"loss {line['loss']:.3f}")
            if state.step % LOG_EVERY == 0:
                with (work / "log.jsonl").open("a") as log:
                    log.write(json.dumps(line) + "\n")
            if state.step % checkpoint_every == 0 or state.step == steps:
                state.save(work / "checkpoint.pt")
    (work / "recipe.json").write_text(json.dumps(state.recipe, indent=2))
