import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from vltune import cli


class Ended(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """Run `vltune` as the console script does."""

    def call(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["vltune", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return Ended(end.value.code or 0, *capsys.readouterr())

    return call
