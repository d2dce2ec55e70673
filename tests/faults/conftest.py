"""One POC for all rows of the matrix; a row that harms it finds it whole again afterwards."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "vltune/flare")]

from federation import Federation

Measure = Callable[[str, float], None]


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """The POC of this session."""
    federation = Federation(tmp_path_factory.mktemp("faults"))
    try:
        yield federation
    finally:
        federation.close()


@pytest.fixture
def federation(running: Federation, monkeypatch: pytest.MonkeyPatch) -> Federation:
    """The POC with every process up and every link whole."""
    monkeypatch.setenv("HOME", running.environment["HOME"])
    running.extra.clear()
    running.link.mend()
    running.start()
    return running


@pytest.fixture(scope="session")
def measure() -> Iterator[Measure]:
    """Note seconds of a row; all are printed at the end, for docs/reliability.md."""
    measured: dict[str, float] = {}
    yield lambda row, seconds: measured.update({row: round(seconds, 1)})
    print("\nseconds:", json.dumps(measured, indent=1))  # noqa: T201
