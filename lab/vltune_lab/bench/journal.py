"""Rows of a long benchmark as they come, so that one that was stopped goes on where it was.

    journal = Journal(folder / "rows.jsonl")
    row = journal.row({"method": "svd", "seed": 8, "job": job}, measure)

A row is known by everything that its figures follow from: what the caller names, among it
`weights_hash` of the models, and the commit. Several processes may share one file.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vltune.config import ConfigError
from vltune.files import sha256_file, sha256_json
from vltune_lab.bench.provenance import commit

_KEY = "key"
_TEXTS = frozenset({".md", ".txt", ".log"})
_CARDS = frozenset({"card.json"})


class Journal:
    """Finished rows in a file of JSON lines.

    Args:
        path: The file; need not be there.

    Raises:
        ConfigError: A line is no row. Only the last one may be cut short, by a process that ended
            while it wrote: that one is left out and measured again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._commit = commit(Path(__file__).parent)
        self._rows = _read(path)

    def row(
        self, facts: Mapping[str, Any], measure: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """The row of these facts: as it was written, or measured and written now."""
        key = sha256_json([self._commit, facts])
        if key not in self._rows:
            self._rows |= _read(self._path)  # what other processes have finished since
        if key not in self._rows:
            row = self._rows[key] = measure()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps({_KEY: key, "row": row}) + "\n")
        return self._rows[key]


def weights_hash(weights: str | Path) -> str:
    """What a model's folder or file holds, as hex SHA-256; a hub id or tag stays as it is.

    Texts that no figure depends on (cards, logs) are left out.
    """
    path = Path(weights)
    if not path.exists():
        return str(weights)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    found = {}
    for file in files:
        if file.suffix not in _TEXTS and file.name not in _CARDS:
            found[str(file.relative_to(path))] = sha256_file(file)
    return sha256_json(found)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    text = path.read_text()
    rows = {}
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        try:
            content = json.loads(line)
            rows[content[_KEY]] = content["row"]
        except (ValueError, KeyError, TypeError) as error:
            if not line.endswith("\n"):
                path.write_text(text[: -len(line)])
                break
            raise ConfigError(
                f"{path}, line {number}: no row ({error}). Delete the file."
            ) from None
    return rows
