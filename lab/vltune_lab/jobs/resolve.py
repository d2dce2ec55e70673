"""From a job's YAML and `--set` to the job dict that travels, with everything read."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vltune.compatibility import check_job
from vltune.conditions import conditions_from_mapping, read_condition_cache
from vltune.config import ConfigError, apply_overrides, from_mapping, read_mapping
from vltune.flare.federation import FederationConfig

Job = dict[str, Any]


@dataclass(frozen=True)
class JobKind:
    """One folder of `jobs/`.

    Attributes:
        method: Name of the method, as reports show it.
        yaml: Its configuration; the key `method` is the dotted path of the participant's builder.
        check: Raises ConfigError where the method refuses the job; called before anything starts.
        finish: Called with run folder, job and summary once a run is complete; returns the summary
            with what it measured itself, such as the global test set.
    """

    method: str
    yaml: Path
    check: Callable[[Job], None] | None = None
    finish: Callable[[Path, Job, dict[str, Any]], dict[str, Any]] | None = None


def resolve_job(
    kind: JobKind, overrides: Sequence[str] = (), name: str = "", yaml: Path | None = None
) -> Job:
    """Read the configuration and everything it points to.

    Args:
        kind: The job.
        overrides: `key.sub=value`.
        name: Name of the job; default: the YAML's `name`.
        yaml: Another configuration than the job's own.

    Raises:
        ConfigError: A wrong key or value; the message names file and key.
        ConditionError: The condition cache is missing or not of the class list.
    """
    path = yaml or kind.yaml
    job = apply_overrides(read_mapping(path), overrides)
    for key in ("name", "method", "seed", "federation"):
        if key not in job:
            raise ConfigError(f"{path}: missing key {key}")
    job["participant"] = job["method"]
    job["method"] = kind.method
    job["name"] = name or job["name"]
    from_mapping(FederationConfig, job["federation"], f"{path}: federation")
    check_job(job, str(path))
    if isinstance(job.get("conditions"), str):
        job |= read_conditions(job["conditions"], job.get("classnames"), path)
    backbone = job.get("backbone")
    if isinstance(backbone, Mapping) and isinstance(backbone.get("weights"), str):
        job["backbone"] = {**backbone, "weights": find_weights(backbone["weights"], path)}
    job = json_able(job)
    if kind.check is not None:
        kind.check(job)
    return job


def read_conditions(text: str, classnames: Sequence[str] | None, yaml: Path) -> Job:
    """The condition cache's content and the class list, which has its home there."""
    path = find_file(text, yaml)
    content = read_condition_cache(path)
    conditions = conditions_from_mapping(content, classnames, str(path))
    return {"conditions": content, "classnames": list(conditions.classnames)}


def find_file(text: str, yaml: Path) -> Path:
    """Find a relative path from the working folder, then from the YAML's folder upwards.

    Raises:
        ConfigError: It is nowhere; the message names where it was looked for.
    """
    found = _search(text, yaml)
    if found is None:
        raise ConfigError(
            f"{yaml}: {text}: no such file, neither in {Path.cwd()} nor beside {yaml.name} or "
            "above. Give its path."
        )
    return found


def find_weights(text: str, yaml: Path) -> str:
    """Absolute path of local weights; anything else stays as it is, a tag of open_clip."""
    found = _search(text, yaml) if text else None
    return text if found is None else str(found)


def _search(text: str, yaml: Path) -> Path | None:
    path = Path(text).expanduser()
    folders = [Path.cwd(), *yaml.absolute().parents]
    candidates = [path] if path.is_absolute() else [folder / path for folder in folders]
    return next((c.resolve() for c in candidates if c.exists()), None)


def json_able(value: Any) -> Any:
    """Tuples to lists, paths to text, infinity to "inf", which the configuration reader knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return json_able(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): json_able(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_able(item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return str(value) if isinstance(value, Path) else value
