"""What the server writes down while a run goes on: metrics.jsonl and rounds.json.

metrics.jsonl holds one JSON object a line: `{site, round, split, metric, value}` for each metric of
each site, and one `{"event": "round", ...}` for each round. Metrics of round N are those of the
global model after N rounds. rounds.json is the state of the whole run, replaced atomically.
"""

import errno
import json
import math
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vltune.files import OutputError, write_bytes_atomic, write_json_atomic

METRICS_FILE = "metrics.jsonl"
STATE_FILE = "rounds.json"
RESERVE_FILE = ".reserve"
RESERVE_BYTES = 1 << 18
SCHEMA_VERSION = 1


def append_json_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Append whole lines with one write, so that a reader never sees half a record.

    Raises:
        OutputError: The disk is full; nothing of the lines is left in the file.
    """
    if not records:
        return
    text = "".join(
        json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n"
        for record in records
    )
    content = text.encode()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    size = os.fstat(handle).st_size
    try:
        if os.write(handle, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(handle)
    except OSError as error:
        os.ftruncate(handle, size)
        raise OutputError(f"cannot write {path}: {error.strerror}. Free space.") from error
    finally:
        os.close(handle)


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON has not, by null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class RunLog:
    """The run's records in the server's folder, and a reserve of its disk for the last of them.

    Args:
        folder: The server's app folder of this job.
        state: First content of rounds.json.
    """

    def __init__(self, folder: Path, state: Mapping[str, Any]) -> None:
        self.folder = folder
        self.state: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "status": "running",
            "reason": None,
            "started": time.time(),
            "phases": {},
            "rounds": [],
            "left_out": {},
            **state,
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(folder / RESERVE_FILE, bytes(RESERVE_BYTES))
        self.save()

    def save(self) -> None:
        """Replace rounds.json."""
        write_json_atomic(self.folder / STATE_FILE, _finite(self.state))

    def update(self, **values: Any) -> None:
        """Set keys of the state and save it."""
        self.state.update(values)
        self.save()

    def end(self, **values: Any) -> None:
        """Set the last keys; there is room for them on a full disk too."""
        (self.folder / RESERVE_FILE).unlink(missing_ok=True)
        self.update(**values)

    def phase(self, name: str, seconds: float) -> None:
        """Add wall time to a phase."""
        phases = self.state["phases"]
        phases[name] = round(phases.get(name, 0.0) + seconds, 4)
        self.save()

    def site_metrics(
        self, round_number: int, split: str, metrics: Mapping[str, Mapping[str, float]]
    ) -> None:
        """Append one line for each site and metric."""
        append_json_lines(
            self.folder / METRICS_FILE,
            [
                {"site": site, "round": round_number, "split": split, "metric": name, "value": v}
                for site in sorted(metrics)
                for name, v in sorted(metrics[site].items())
            ],
        )

    def round_line(self, record: Mapping[str, Any]) -> None:
        """Append the line of a whole round and keep it in the state."""
        append_json_lines(self.folder / METRICS_FILE, [{"event": "round", **record}])
        self.state["rounds"].append(dict(record))
        self.save()


def new_run_id() -> str:
    """A name for one run; readable, and nothing that FLARE's scan would take for a key."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
