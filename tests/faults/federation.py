"""A POC of the tests' own: every process can be killed, a link cut, a disk filled, a clock set."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from linear_site import write_site
from link import Link

ROOT = Path(__file__).parents[2]
JOB = Path(__file__).with_name("linear_job.py")
ADMIN = "admin@nvidia.com"
LINKED_SITE = "site-2"
SITES = ("site-1", LINKED_SITE)
PROJECT = "vltune_poc"
LIMIT_SECONDS = 180.0
JOB_PROCESSES = ("runner_process", "worker_process")


def wait_for(condition: Callable[[], Any], what: str, seconds: float = LIMIT_SECONDS) -> Any:
    """Poll until `condition` holds; returns what it returned."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {seconds:g} s")


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Federation:
    """A server and two sites of one machine; site-2 reaches the server through a `Link`.

    Args:
        folder: Empty; takes the sites' data, FLARE's workspace and all runs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workspace = folder / "poc"
        self.kits = self.workspace / PROJECT / "prod_00"
        self.port = free_port()
        self.link = Link(self.port)
        self.extra: dict[str, dict[str, str]] = {}
        for index, name in enumerate(SITES):
            write_site(folder / "data" / name, name, 17 + 6 * index, seed=index)
        (folder / "home").mkdir()
        self.environment = os.environ | {
            "HOME": str(folder / "home"),
            "NVFLARE_POC_WORKSPACE": str(self.workspace),
            "VLTUNE_SITE_CONFIG": str(folder / "data/{site}/vltune_site.yaml"),
            "PYTHONPATH": str(ROOT / "tests/vltune/flare"),
        }
        path = folder / "project.yml"
        path.write_text(yaml.safe_dump(self._project()))
        nvflare = Path(sys.executable).with_name("nvflare")
        subprocess.run(
            [nvflare, "poc", "prepare", "-i", path],
            env=self.environment,
            check=True,
            capture_output=True,
            timeout=LIMIT_SECONDS,
        )

    def _project(self) -> dict[str, Any]:
        project = yaml.safe_load((ROOT / "poc_workspace/project.yml").read_text())
        others = [entry for entry in project["participants"] if entry["type"] != "client"]
        sites: list[dict[str, Any]] = [
            {"name": name, "type": "client", "org": "vltune"} for name in SITES
        ]
        project["participants"] = others + sites
        next(entry for entry in others if entry["type"] == "server")["fed_learn_port"] = self.port
        linked = next(entry for entry in sites if entry["name"] == LINKED_SITE)
        linked["connect_to"] = {"host": "localhost", "port": self.link.port}
        return project

    def start(self, *names: str) -> None:
        """Start what does not run (all without a name) and wait until the server sees the sites."""
        down = [name for name in names or ("server", *SITES) if not self.processes(name)]
        for name in down:
            for left in ("daemon_pid.fl", "pid.fl", "shutdown.fl"):
                (self.kits / name / left).unlink(missing_ok=True)
            with (self.kits / name / "console.log").open("ab") as console:
                subprocess.run(
                    [self.kits / name / "startup/start.sh"],
                    env=self.environment | self.extra.get(name, {}),
                    stdout=console,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    check=True,
                    timeout=LIMIT_SECONDS,
                )
        if down:
            self.admin("wait", *(name for name in SITES if self.processes(name)))

    def admin(self, *arguments: str) -> str:
        """Do something as the administrator (admin.py); returns what it printed."""
        paths = (Path(__file__).parent, ROOT / "tests/vltune/flare", ROOT / "custom", ROOT / "lab")
        done = subprocess.run(
            [sys.executable, Path(__file__).with_name("admin.py"), self.kits / ADMIN, *arguments],
            env=self.environment | {"PYTHONPATH": os.pathsep.join(map(str, paths))},
            capture_output=True,
            text=True,
            check=False,
            timeout=2 * LIMIT_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def processes(self, name: str, only_job: bool = False) -> list[int]:
        """Ids of the processes of a server or site: watchdog, parent, and those of jobs."""
        kit, found = f"{self.kits}/{name}".encode(), []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = entry.read_bytes()
            except OSError:
                continue
            is_job = any(module.encode() in line for module in JOB_PROCESSES)
            if (kit + b"/" in line or kit + b"\0" in line) and (is_job or not only_job):
                found.append(int(entry.parent.name))
        return found

    def kill(self, name: str, only_job: bool = False) -> None:
        """Kill a host's processes, or its job's alone, without a word of farewell."""
        while found := self.processes(name, only_job):
            for pid in found:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)

    def close(self) -> None:
        """End every process and the link."""
        for name in (*SITES, "server"):
            self.kill(name)
        self.link.close()

    def state_of_site(self, name: str) -> Path:
        """Where a site keeps what survives a run."""
        return self.folder / "data" / name / "vltune_state" / name

    def submit(self, name: str, *overrides: str, resume: bool = False) -> "Submitted":
        """Give the user's command for a run."""
        return Submitted(self, name, overrides, resume)


class Submitted:
    """The user's command for one run: what it said, when it ended, and where the run is."""

    def __init__(
        self, federation: Federation, name: str, overrides: Sequence[str], resume: bool
    ) -> None:
        self.federation = federation
        self.folder = federation.folder / "runs" / name
        self._output = federation.folder / f"{name}-{time.monotonic_ns()}.txt"
        command = [sys.executable, str(JOB), "--env", "poc", "--out", str(self.folder.parent)]
        command += ["--resume", str(self.folder)] if resume else ["--name", name]
        command += [part for override in overrides for part in ("--set", override)]
        paths = os.pathsep.join(str(ROOT / part) for part in ("custom", "lab"))
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                env=federation.environment | {"PYTHONPATH": paths, "COLUMNS": "500"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        """All that the user has read so far."""
        return self._output.read_text()

    @property
    def job_id(self) -> str:
        """FLARE's id of the job, as soon as the user has read it."""
        found = wait_for(self._job_id, f"submitted: {self.said}")
        return str(found)

    def _job_id(self) -> str:
        marks = [line.split()[-1] for line in self.said.splitlines() if "FLARE job " in line]
        assert marks or self.process.poll() is None, self.said
        return marks[0] if marks else ""

    def server_state(self) -> Mapping[str, Any]:
        """The run's record on the server's disk; empty before it starts and after it ended."""
        path = self.federation.kits / "server" / self.job_id / "app_server" / "rounds.json"
        try:
            content: dict[str, Any] = json.loads(path.read_text())
        except FileNotFoundError:
            return {}
        return content

    def in_round(self, number: int, site: str) -> int:
        """Wait until a site trains in this round or a later one, a moment deep; returns which."""
        self.wait(lambda: self._round_of(site) >= number, f"{site} in round {number}")
        time.sleep(0.3)
        return self._round_of(site)

    def _round_of(self, site: str) -> int:
        run_id = self.server_state().get("run_id", "nothing")
        path = self.federation.state_of_site(site) / run_id / "training.txt"
        text = path.read_text() if path.exists() else ""
        return int(text) if text else -1

    def completed(self, rounds: int) -> None:
        """Wait until the server has that many rounds on its disk."""
        self.wait(
            lambda: self.server_state().get("completed_rounds", 0) >= rounds, f"{rounds} rounds"
        )

    def wait(self, condition: Callable[[], Any], what: str) -> None:
        """Wait for something that must happen before the command ends."""

        def happened() -> Any:
            assert self.process.poll() is None, f"ended before {what}: {self.said}"
            return condition()

        wait_for(happened, what)

    def ended(self, seconds: float = LIMIT_SECONDS) -> float:
        """Wait for the end of the command; returns how long that took."""
        began = time.monotonic()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"no end within {seconds:g} s: {self.said}") from None
        return time.monotonic() - began

    def record(self) -> dict[str, Any]:
        """rounds.json of the run folder."""
        content: dict[str, Any] = json.loads((self.folder / "rounds.json").read_text())
        return content

    def adapter(self, number: int) -> bytes:
        """The global model after `number` rounds, as it came home."""
        path = self.folder / "adapters" / f"global_adapter_round{number}.safetensors"
        return path.read_bytes()

    def personal(self, site: str, number: int) -> bytes:
        """What a site kept after training in round `number`."""
        folder = self.federation.state_of_site(site) / self.record()["run_id"]
        return (folder / f"personal_round{number}.safetensors").read_bytes()
