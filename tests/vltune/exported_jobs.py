"""A job's folder as the recipe exports it; written by tests that need no FLARE."""

import json
from pathlib import Path
from typing import Any

from vltune.conditions import class_list_hash
from vltune.doctor_versions import installed_versions


def write_job(folder: Path, job: dict[str, Any], **federation: Any) -> Path:
    """meta.json and the app's configuration; the package is installed at the sites."""
    config = folder / "app" / "config"
    config.mkdir(parents=True)
    told = {key: value for key, value in job.items() if key not in ("federation", "participant")}
    arguments = {"participant": job["participant"]}
    names = job.get("classnames")
    facts = {"class_list": class_list_hash(names)[:16]} if names else {}
    known = {"round_timeout_seconds": 600.0, "prepare_timeout_seconds": 3600.0} | federation
    controller = {"args": {"federation": known, "run": {"facts": facts}}}
    contents = {
        folder / "meta.json": {"name": job["name"]},
        config / "vltune_job.json": told,
        config / "vltune_versions.json": {"versions": installed_versions()},
        config / "config_fed_client.json": {"executors": [{"executor": {"args": arguments}}]},
        config / "config_fed_server.json": {"workflows": [controller]},
    }
    for path, content in contents.items():
        path.write_text(json.dumps(content))
    return folder


def change(path: Path, **keys: Any) -> None:
    """Change keys at the top of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
