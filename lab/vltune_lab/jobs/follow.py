"""Follow a run's metrics.jsonl and say one line a round."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

Record = dict[str, Any]
WORST = "worst_site_"
"""A round's record holds the run's metric and, under this and its name, the worst site's."""


class Follower:
    """Reads whole lines of a growing file; `on_round` gets the record of each round once."""

    def __init__(self, path: Path, on_round: Callable[[Record], None]) -> None:
        self.path = path
        self.on_round = on_round
        self._position = 0

    def poll(self) -> None:
        """Hand on what was written since the last call."""
        if not self.path.exists():
            return
        with self.path.open("rb") as stream:
            stream.seek(self._position)
            content = stream.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._position += len(whole)
        for line in whole.splitlines():
            record = json.loads(line)
            if record.get("event") == "round":
                self.on_round(record)


def round_line(record: Mapping[str, Any], rounds: int) -> str:
    """One readable line: round, metric, worst site, loss, seconds, bytes up."""
    metric = next(key for key in record if key.startswith(WORST)).removeprefix(WORST)
    parts = [f"round {record['round']:>3}/{rounds}", f"{metric} {_fraction(record[metric])}"]
    if record["worst_site"]:
        parts.append(f"worst {record['worst_site']} {_fraction(record[WORST + metric])}")
    if record["bytes_up"]:
        parts.append(f"loss {record['loss']:.4f}" if record["loss"] is not None else "loss -")
        parts.append(f"{record['seconds']:.1f} s")
        parts.append(f"{sum(record['bytes_up'].values()) / 1e6:.2f} MB up")
    else:
        parts.append("before training" if record["round"] == 0 else "continued from here")
    refused = [entry["site"] for entry in record["rejected"]]
    if refused:
        parts.append(f"without {', '.join(refused)}")
    treated = [f"{entry['site']} {entry['action']}" for entry in record.get("robust", [])]
    if treated:
        parts.append(", ".join(treated).replace("_", " "))
    return "  ".join(parts)


def printer(console: Console, rounds: int) -> Callable[[Record], None]:
    """Print a line for each round."""
    return lambda record: console.print(round_line(record, rounds), highlight=False)


def _fraction(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"
