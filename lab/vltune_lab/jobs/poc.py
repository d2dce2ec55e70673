"""A FLARE system on this machine, driven by NVIDIA FLARE's own commands, each shown as it is typed.

    poc = Poc(read_project(path), workspace, console)
    with poc.running():
        job_id = poc.submit(folder)

Server, sites and users are processes and folders of FLARE's; nothing here knows more than a user
who types the commands.
"""

import os
import shlex
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from vltune.flare.run_log import METRICS_FILE
from vltune.site_policy import allow_classes
from vltune_lab.jobs.flare_commands import (
    JSON,
    WORKSPACE_VARIABLE,
    FlareCommands,
    envelope_of,
    read_back,
)
from vltune_lab.jobs.follow import Follower, Record
from vltune_lab.jobs.poc_project import PocError, Project, check_ports

PROD = "prod_00"
START_SECONDS = 300.0
STOP_SECONDS = 90.0
END_SECONDS = 20.0
POLL_SECONDS = 0.5
MARKS = ("nvflare.private.fed.app", "/startup/sub_start.sh", "/startup/start.sh")
"""What command lines of FLARE's own processes hold beside the workspace."""


class Poc:
    """One FLARE system in a workspace.

    Args:
        project: Who takes part.
        workspace: FLARE's folder; it is wiped when the system is prepared.
        console: Where commands are shown.
    """

    def __init__(self, project: Project, workspace: Path, console: Console) -> None:
        self.project = project
        self.workspace = workspace.absolute()
        self.console = console
        self.nvflare = FlareCommands(self.workspace, console)

    @property
    def folder(self) -> Path:
        """Where FLARE puts the folders of server, sites and users."""
        return self.workspace / self.project.name / PROD

    @property
    def kit(self) -> Path:
        """Startup kit of the user who submits."""
        return self.folder / self.project.submitter

    def prepare(self) -> None:
        """Make certificates and folders anew.

        Raises:
            PocError: A system is running in this workspace, or a port is taken.
        """
        if self.processes():
            raise PocError(
                f"a FLARE system is running in {self.workspace}. End it first: "
                f"{WORKSPACE_VARIABLE}={shlex.quote(str(self.workspace))} nvflare poc stop"
            )
        check_ports(self.project)
        self.nvflare("poc", "prepare", "--force", "-i", self.project.path)

    def allow(self) -> None:
        """Put VLTune's classes on the list of server and sites; before they start."""
        for name in (self.project.server, *self.project.sites):
            self.nvflare.show("vltune", "allow", "--startup-kit", self.folder / name)
            allow_classes(self.folder / name)

    def start(self) -> None:
        """Start server and sites, and wait until all sites are registered.

        Raises:
            PocError: They are not, after START_SECONDS.
        """
        self.nvflare("poc", "start", "--no-wait")
        until = time.monotonic() + START_SECONDS
        status = (*JSON, "system", "status", "--startup-kit", self.kit)
        self.nvflare.show("nvflare", *status)
        missing = set(self.project.sites)
        while missing and time.monotonic() < until:
            answer = self.nvflare.ask(*status)
            there = {entry["client_name"] for entry in answer.get("clients", [])}
            missing = set(self.project.sites) - there
        if missing:
            raise PocError(
                f"not started within {START_SECONDS:g} s: {', '.join(sorted(missing))}. See "
                f"{self.folder}/<name>/log.txt."
            )
        self.console.print(f"  there: {', '.join(self.project.sites)}", highlight=False)

    def submit(self, job_folder: Path) -> str:
        """Submit an exported job; returns FLARE's id of it."""
        words = (*JSON, "job", "submit", "-j", job_folder.absolute(), "--startup-kit", self.kit)
        answer = self.nvflare(*words)
        job_id = str(answer["job_id"])
        self.console.print(f"  job {job_id}", highlight=False)
        return job_id

    def wait(self, job_id: str, on_round: Callable[[Record], None]) -> str:
        """Wait for a job's end, handing on each round; returns what FLARE says of it."""
        words = (*JSON, "job", "wait", job_id, "--startup-kit", self.kit)
        self.nvflare.show("nvflare", *words)
        server = self.folder / self.project.server / job_id / "app_server"
        follower = Follower(server / METRICS_FILE, on_round)
        with tempfile.TemporaryFile() as output:
            process = self.nvflare.start(words, output)
            try:
                while process.poll() is None:
                    time.sleep(POLL_SECONDS)
                    follower.poll()
            finally:
                process.kill()
                process.wait()
            follower.poll()
            answer = envelope_of(read_back(output))
        return str((answer.get("data") or {}).get("status") or answer.get("message") or "unknown")

    def download(self, job_id: str, folder: Path) -> Path:
        """Download a job's result below `folder`; returns where it is."""
        words = (*JSON, "job", "download", job_id, "--force", "-o", folder.absolute())
        self.nvflare(*words, "--startup-kit", self.kit)
        return folder / job_id

    def stop(self) -> None:
        """End server and sites: FLARE's command first, then what it left over."""
        try:
            self.nvflare("poc", "stop", seconds=STOP_SECONDS)
        except PocError as error:
            self.console.print(f"  {error}", highlight=False, markup=False, soft_wrap=True)
        for number in (0, signal.SIGTERM, signal.SIGKILL):
            until = time.monotonic() + END_SECONDS
            for pid in self.processes():
                _signal(pid, number)  # 0: none yet, they may be about to end
            while self.processes() and time.monotonic() < until:
                time.sleep(POLL_SECONDS)
        left = self.processes()
        if left:
            raise PocError(f"processes {left} of {self.workspace} do not end")

    @contextmanager
    def running(self, *, allows_classes: bool = False) -> Iterator[None]:
        """Prepare and start; whatever happens then, a kill by SIGTERM included, stop.

        Args:
            allows_classes: Let jobs that bring no code use VLTune's classes.
        """
        before = signal.getsignal(signal.SIGTERM)
        self.prepare()
        if allows_classes:
            self.allow()
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            self.start()
            yield
        finally:
            # A second Ctrl-C or SIGTERM must not leave half of the processes behind.
            interrupts = signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            try:
                self.stop()
            finally:
                signal.signal(signal.SIGINT, interrupts)
                signal.signal(signal.SIGTERM, before)

    def processes(self) -> list[int]:
        """FLARE's processes that work in this workspace."""
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # ended just now
                continue
            if f"{self.workspace}/" in line and any(mark in line for mark in MARKS):
                found.append(int(entry.parent.name))
        return found


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
