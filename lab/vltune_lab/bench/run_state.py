"""What a finished run's folder says of its rounds."""

import json
from pathlib import Path
from typing import Any

from vltune.flare.run_log import METRICS_FILE, STATE_FILE


def last_round(server: Path) -> dict[str, Any]:
    """The record of the last round: bytes, exactness error, figures."""
    record: dict[str, Any] = json.loads((server / STATE_FILE).read_text())["rounds"][-1]
    return record


def by_round(server: Path, metric: str) -> dict[int, dict[str, float]]:
    """Round -> site -> value of one metric of the sites."""
    found: dict[int, dict[str, float]] = {}
    for text in (server / METRICS_FILE).read_text().splitlines():
        line = json.loads(text)
        if line.get("metric") == metric:
            found.setdefault(line["round"], {})[line["site"]] = line["value"]
    return dict(sorted(found.items()))
