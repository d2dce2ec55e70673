"""What a site must allow before it runs a VLTune job that brings no code.

NVIDIA FLARE builds only the classes that `local/resources.json` lists; a job with code is free of
that list, and needs the right `byoc` instead.
"""

import json
from pathlib import Path
from typing import Any

from vltune.config import ConfigError
from vltune.files import write_json_atomic

CLASSES = (
    "vltune.flare.aggregator.ValidatingAggregator",
    "vltune.flare.controller.FederationController",
    "vltune.flare.executor.ParticipantExecutor",
    "vltune.flare.filters.SharedOnlyFilter",
    "vltune.flare.persistor.AdapterPersistor",
)
"""Every class of ours that an exported job names."""
KEY = "class_allow_list"
FILE = "resources.json"


def allow_classes(kit: Path) -> list[str]:
    """Add VLTune's classes to the list of a server's or site's startup kit.

    `local/resources.json` is written; where there is none yet, after `resources.json.default`.

    Args:
        kit: The folder with `startup/` and `local/`.

    Returns:
        What was added; empty where all was there.

    Raises:
        ConfigError: It is no startup kit, or its file is damaged.
    """
    path = kit / "local" / FILE
    source = path if path.exists() else path.with_name(f"{FILE}.default")
    content = _read(source)
    known = content.get(KEY)
    if not isinstance(known, list):
        raise ConfigError(
            f"{source}: {KEY} is {type(known).__name__}, expected a list. Take the file of the "
            "startup kit again."
        )
    added = [name for name in CLASSES if name not in known]
    if added:
        write_json_atomic(path, content | {KEY: known + added})
    return added


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}). Give the folder of a FLARE server or site, with "
            "startup/ and local/."
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected an object at the top.")
    return content
