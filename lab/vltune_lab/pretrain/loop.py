"""The loop around a pre-training run: progress bar, log, checkpoints."""

import json
from collections.abc import Iterator
from pathlib import Path

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vltune_lab.pretrain.run_state import RunState

LOG_EVERY = 20


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
