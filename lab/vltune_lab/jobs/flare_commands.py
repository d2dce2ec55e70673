"""NVIDIA FLARE's command line: shown as it is typed, run with a time limit, answered as JSON."""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from vltune_lab.jobs.poc_project import PocError

WORKSPACE_VARIABLE = "NVFLARE_POC_WORKSPACE"
COMMAND_SECONDS = 300.0
JSON = ("--format", "json")
SHOWN_CHARACTERS = 500

Words = tuple[str | Path, ...]


class FlareCommands:
    """Runs `nvflare ...` on one workspace.

    Args:
        workspace: FLARE's folder.
        console: Where commands are shown.
    """

    def __init__(self, workspace: Path, console: Console) -> None:
        self.workspace = workspace
        self.console = console

    def show(self, *words: str | Path) -> None:
        """Print a command as it can be typed."""
        text = " ".join(shlex.quote(_short(word)) for word in words)
        self.console.print(f"$ {text}", style="bold", highlight=False, markup=False, soft_wrap=True)

    def __call__(self, *words: str | Path, seconds: float = COMMAND_SECONDS) -> dict[str, Any]:
        """Show and run a command.

        Returns:
            The `data` of the JSON that it printed; empty where it printed none.

        Raises:
            PocError: It failed, or did not end within `seconds`.
        """
        self.show("nvflare", *words)
        code, text = self._run(words, seconds)
        if code != 0:
            raise PocError(_failure(words, code, text, seconds))
        return data_of(text)

    def ask(self, *words: str | Path, seconds: float = COMMAND_SECONDS) -> dict[str, Any]:
        """Run a command that may fail, without showing it again."""
        return data_of(self._run(words, seconds)[1])

    def start(self, words: Words, output: Any) -> subprocess.Popen[bytes]:
        """Start a command; `output` is a file: what it starts would keep a pipe open."""
        return subprocess.Popen(
            [str(_program()), *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(os.environ) | {WORKSPACE_VARIABLE: str(self.workspace)},
            start_new_session=True,  # Ctrl-C is for us; we end what must end
        )

    def _run(self, words: Words, seconds: float) -> tuple[int | None, str]:
        with tempfile.TemporaryFile() as output:
            process = self.start(words, output)
            try:
                code: int | None = process.wait(seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                process.kill()
                process.wait()
            return code, read_back(output)


def read_back(output: Any) -> str:
    """All that was written to an open file."""
    output.seek(0)
    return str(output.read().decode(errors="replace"))


def envelope_of(text: str) -> dict[str, Any]:
    """The JSON object among the lines that a command printed; empty without one."""
    for line in reversed(text.splitlines()):
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict):
            return content
    return {}


def data_of(text: str) -> dict[str, Any]:
    """What a command answered."""
    data = envelope_of(text).get("data")
    return data if isinstance(data, dict) else {}


def _program() -> Path:
    """The command of this Python's environment."""
    beside = Path(sys.executable).with_name("nvflare")
    return beside if beside.exists() else Path("nvflare")


def _short(word: str | Path) -> str:
    """A path below the working folder as a relative one."""
    path = Path(word)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return str(word)


def _failure(words: Words, code: int | None, text: str, seconds: float) -> str:
    shown = " ".join(["nvflare", *(_short(word) for word in words)])
    if code is None:
        return f"{shown}: no end within {seconds:g} s"
    answer = envelope_of(text)
    said = f"{answer.get('message') or ''} {answer.get('hint') or ''}".strip()
    return f"{shown}: exit status {code}: {said or text.strip()[-SHOWN_CHARACTERS:]}"
