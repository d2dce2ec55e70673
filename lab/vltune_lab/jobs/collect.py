"""From the server's folder of a run to runs/<name>/ and its summary."""

import json
import math
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vltune.files import write_bytes_atomic, write_json_atomic
from vltune.flare.federation import METRICS
from vltune.flare.persistor import BEST_FILE, LAST_FILE
from vltune.flare.run_log import METRICS_FILE, STATE_FILE

ADAPTERS = "adapters"
MAP = "mAP"
MULTI_LABEL = (MAP, "CF1", "OF1")
FINAL_ADAPTER = "global_adapter.safetensors"
_TRAINING = (
    *("loss", "seconds", "overhead_seconds", "sites", "bytes_up", "bytes_down", "rejected"),
    *("exactness_error", "exactness_by_module", "robust", "privacy"),
)
_EXTRA = ("run_id", "best", "facts", "bytes_prepare", "bytes_validate")
_PACKAGES = ("vltune", "nvflare", "torch", "torchvision", "open_clip_torch", "numpy")

State = dict[str, Any]


def read_state(folder: Path) -> State:
    """rounds.json of a run folder or of a server's folder; empty where there is none."""
    path = folder / STATE_FILE
    content: State = json.loads(path.read_text()) if path.exists() else {}
    return content


def collect(server: Path, run_folder: Path, wall_seconds: float | None = None) -> State:
    """Bring the server's files home; what an earlier part of a resumed run left is kept.

    Args:
        server: The server's folder.
        run_folder: Its home.
        wall_seconds: Of this part of the run; None for a part that was interrupted.

    Returns:
        The state of the whole run.
    """
    earlier, state = read_state(run_folder), read_state(server)
    work = sum(state["phases"].values())
    state["wall_seconds"] = max(wall_seconds or 0.0, work)
    state["phases"]["start_and_stop"] = state["wall_seconds"] - work
    lines = _lines(server / METRICS_FILE)
    if earlier and earlier.get("run_id") == state.get("run_id"):
        start = int(state["start_round"])
        lines = merge_lines(_lines(run_folder / METRICS_FILE), lines, start, earlier)
        state = merge_states(earlier, state)
    adapters = run_folder / ADAPTERS
    adapters.mkdir(parents=True, exist_ok=True)
    for path in server.glob("*.safetensors"):
        shutil.copyfile(path, adapters / path.name)
    if not (adapters / BEST_FILE).exists() and (adapters / LAST_FILE).exists():
        shutil.copyfile(adapters / LAST_FILE, adapters / BEST_FILE)
    if (adapters / LAST_FILE).exists():
        write_bytes_atomic(run_folder / FINAL_ADAPTER, (adapters / LAST_FILE).read_bytes())
    events = server.parent / "tb_events"
    if events.is_dir():
        shutil.copytree(events, run_folder / "tensorboard", dirs_exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_bytes_atomic(run_folder / METRICS_FILE, text.encode())
    write_json_atomic(run_folder / STATE_FILE, state)
    return state


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines only: a server that dies may leave half of one."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def merge_lines(
    earlier: list[dict[str, Any]],
    later: list[dict[str, Any]],
    start: int,
    state: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Lines of a run that was continued at `start`: the earlier part up to it, then the later."""
    kept = [
        line
        for line in earlier
        if line["round"] < start or (line["round"] == start and line.get("split") == "train")
    ]
    first = {line["round"]: line for line in earlier if line.get("event") == "round"}.get(start)
    training = first or state.get("last_training") or {}
    return kept + [
        _with_training(line, training)
        if line.get("event") == "round" and line["round"] == start
        else line
        for line in later
    ]


def _with_training(record: dict[str, Any], training: Mapping[str, Any]) -> dict[str, Any]:
    """The round at which a run was continued was trained in its earlier part."""
    return record | {key: training[key] for key in _TRAINING if key in training}


def merge_states(earlier: State, later: State) -> State:
    """State of a run that was continued."""
    start = later["start_round"]
    first = {record["round"]: record for record in earlier["rounds"]}.get(start)
    training = first or earlier.get("last_training") or {}
    rounds = [record for record in earlier["rounds"] if record["round"] < start] + [
        _with_training(record, training) if record["round"] == start else record
        for record in later["rounds"]
    ]
    phases = {
        name: earlier["phases"].get(name, 0.0) + later["phases"].get(name, 0.0)
        for name in {**earlier["phases"], **later["phases"]}
    }
    best = max(
        (s["best"] for s in (earlier, later) if s.get("best")),
        key=lambda entry: entry[later.get("metric", MAP)],
        default=None,
    )
    merged = {**later, "rounds": rounds, "phases": phases, "best": best}
    merged["started"], merged["start_round"] = earlier["started"], earlier["start_round"]
    merged["wall_seconds"] = earlier["wall_seconds"] + later["wall_seconds"]
    return merged


def summarise(
    job: Mapping[str, Any], state: State, run_folder: Path, environment: str
) -> dict[str, Any]:
    """The summary of a complete run (docs/run_folder.md), before anything else was measured.

    Args:
        job: The resolved job.
        state: rounds.json.
        run_folder: Holds metrics.jsonl.
        environment: sim, poc or prod.
    """
    rounds = state["rounds"]
    metric, threshold = state.get("metric", MAP), job.get("threshold", 0.5)
    per_site = _per_site(state, _lines(run_folder / METRICS_FILE))
    sent = [size for record in rounds for size in record["bytes_up"].values()]
    return {
        "schema_version": 1,
        "job": job["name"],
        "method": job["method"],
        "sites": len(state["sites"]),
        "rounds": state["completed_rounds"],
        "seed": job["seed"],
        "zero_shot_mAP": None,
        "global_mAP": rounds[-1].get(MAP),
        "worst_site_mAP": _lowest(site[MAP] for site in per_site),
        "scores": None if metric == MAP else _scores(metric, rounds[-1], per_site),
        "bytes_up_per_site_per_round": round(sum(sent) / len(sent)) if sent else 0,
        "wall_seconds": round(state["wall_seconds"], 3),
        "config": dict(job),
        "seeds": {"run": job["seed"]},
        "versions": versions(),
        "per_round": [_round(record, metric) for record in rounds],
        "per_site": per_site,
        "thresholds": dict.fromkeys(MULTI_LABEL[1:] if metric == MAP else (), threshold),
        "bytes_per_site_per_round": _site_bytes(rounds),
        "wall_seconds_by_phase": {name: round(value, 3) for name, value in state["phases"].items()},
        "rejected_updates": [
            {"round": r["round"], **entry} for r in rounds for entry in r["rejected"]
        ],
        "robust_decisions": [
            {"round": r["round"], **entry} for r in rounds for entry in r.get("robust", [])
        ],
        "privacy": _privacy(rounds),
        "measured_on": "site_histograms",
        "artefacts": {"adapter": FINAL_ADAPTER, "metrics": METRICS_FILE},
        "left_out_sites": state["left_out"],
        "environment": environment,
        "started": datetime.fromtimestamp(state["started"], UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "extra": {key: state.get(key) for key in _EXTRA},
    }


def _privacy(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each site has spent, from the last round in which it said so, by site."""
    last = {entry["site"]: entry for record in rounds for entry in record.get("privacy", [])}
    return [entry for _, entry in sorted(last.items())]


def _site_bytes(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "site": site,
            "round": record["round"],
            "bytes_up": record["bytes_up"].get(site, 0),
            "bytes_down": size,
        }
        for record in rounds
        for site, size in record["bytes_down"].items()
    ]


def _scores(
    metric: str, last: Mapping[str, Any], per_site: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The headline of a run whose metric is not mAP."""
    zero_shot = [site["metrics"].get(f"zero_shot_{metric}") for site in per_site]
    known = [value for value in zero_shot if value is not None]
    return {
        "metric": metric,
        "zero_shot": math.fsum(known) / len(known) if known else None,
        "overall": last[metric],
        "worst_site": _lowest(site["metrics"].get(metric) for site in per_site),
    }


def _round(record: Mapping[str, Any], metric: str) -> dict[str, Any]:
    others = {"score": record[metric], "worst_site_score": record[f"worst_site_{metric}"]}
    return {
        "round": record["round"],
        "mAP": record.get(MAP),
        "worst_site_mAP": record.get("worst_site_mAP"),
        **({} if metric == MAP else others),
        "loss": record["loss"],
        "seconds": record["seconds"],
        "overhead_seconds": record["overhead_seconds"] or 0.0,
        "bytes_up": sum(record["bytes_up"].values()),
        "bytes_down": sum(record["bytes_down"].values()),
        "rejected": len(record["rejected"]),
        "exactness_error": record.get("exactness_error"),
    }


def _per_site(state: State, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics of the last global model at each site."""
    last = {
        (line["site"], line["metric"]): line["value"]
        for line in lines
        if line.get("split") == "validation" and line["round"] == state["completed_rounds"]
    }
    zero_shot = {
        line["site"]: line["value"] for line in lines if line.get("metric") == "zero_shot_mAP"
    }
    return [
        {
            "site": site,
            "num_examples": facts["num_examples"],
            "num_validation": facts["num_validation"],
            "zero_shot_mAP": zero_shot.get(site),
            **{name: last.get((site, name)) for name in MULTI_LABEL},
            "metrics": _others(site, last, lines),
        }
        for site, facts in sorted(state["sites"].items())
    ]


def _others(
    site: str, last: Mapping[tuple[str, str], float], lines: list[dict[str, Any]]
) -> dict[str, float]:
    """Figures in [0, 1] of one site beside the multi-label ones, what it began with included."""
    began = {
        line["metric"]: line["value"]
        for line in lines
        if line.get("site") == site and line["metric"].startswith("zero_shot_")
    }
    now = {name: value for (name_of, name), value in last.items() if name_of == site}
    return {
        name: value
        for name, value in (began | now).items()
        if name.removeprefix("zero_shot_").removeprefix("test_") in METRICS
        and not name.endswith(MAP)
    }


def _lowest(values: Any) -> float | None:
    return min((v for v in values if v is not None and math.isfinite(v)), default=None)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            import vltune

            found[package] = vltune.__version__ if package == "vltune" else "not installed"
    return found


def hardware() -> str:
    """One readable line: processor and cores."""
    return f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {platform.system()}"
