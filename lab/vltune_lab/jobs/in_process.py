"""A whole federation in one process, without FLARE's processes.

Controller, executor, filter and aggregator are the same. For measurements over many seeds, and as
the proof that FLARE changes no bit. Messages are serialised and read back as FLARE does; sites are
asked one after another.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.apis.workspace import Workspace
from nvflare.app_common.decomposers import numpy_decomposers
from nvflare.fuel.utils import fobs

from vltune.config import from_mapping, to_mapping
from vltune.flare.aggregator import ValidatingAggregator
from vltune.flare.controller import FederationController
from vltune.flare.exchange import payload_bytes
from vltune.flare.executor import JOB_FILE, ParticipantExecutor
from vltune.flare.federation import FederationConfig, FederationError
from vltune.flare.filters import SharedOnlyFilter
from vltune.flare.inquiry import Answers, Live
from vltune.flare.persistor import AdapterPersistor, run_folder
from vltune.flare.recipe import job_facts, site_job
from vltune.flare.run_log import STATE_FILE
from vltune.site_config import VARIABLE

JOB_ID = "in_process"


class Engine(SimpleNamespace):
    """The part of a FLARE engine that our components call."""

    def __init__(self, workspace: Workspace, sites: Sequence[str] = (), **components: Any) -> None:
        super().__init__(workspace=workspace, sites=sites, components=components)

    def get_workspace(self) -> Workspace:
        """Where this server or site has its folders."""
        return self.workspace

    def get_component(self, component_id: str) -> Any:
        """A component by its id, None where there is none."""
        return self.components.get(component_id)

    def get_clients(self) -> list[Client]:
        """All sites."""
        return [Client(site, "") for site in self.sites]

    def fire_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Hand an event to the components."""
        for component in self.components.values():
            if isinstance(component, FLComponent):
                component.handle_event(event_type, fl_ctx)


def make_context(engine: Engine, name: str) -> FLContext:
    """A FLARE context as a simulated site or server has it."""
    manager = FLContextManager(
        engine=engine, identity_name=name, job_id=JOB_ID, public_stickers={}, private_stickers={}
    )
    context: FLContext = manager.new_context()
    context.set_prop(FLContextKey.SIMULATE_MODE, True, private=True, sticky=True)
    return context


def make_workspace(folder: Path, name: str) -> Workspace:
    """A FLARE workspace with the folders that a started site has."""
    for part in ("startup", "local"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    workspace = Workspace(str(folder), name)
    Path(workspace.get_app_config_dir(JOB_ID)).mkdir(parents=True, exist_ok=True)
    return workspace


def over_the_wire(message: Shareable) -> Shareable:
    """Serialise and read back, as between two FLARE processes."""
    numpy_decomposers.register()
    return fobs.loads(fobs.dumps(message))


@dataclass
class LocalSite:
    """One site in this process: its executor, its filter and its context."""

    name: str
    executor: ParticipantExecutor
    context: FLContext
    gate: SharedOnlyFilter = field(default_factory=SharedOnlyFilter)

    def ask(self, task_name: str, message: Shareable, abort_signal: Signal) -> Shareable:
        """Do a task; the answer has passed the site's filter and the wire."""
        reply = self.executor.execute(task_name, over_the_wire(message), self.context, abort_signal)
        return over_the_wire(self.gate.process(reply, self.context))


@dataclass
class LocalInquiry:
    """Takes the place of `vltune.flare.inquiry.Inquiry`; asks sites in the order of `order`."""

    sites: Mapping[str, LocalSite]
    order: Sequence[str] = ()

    def ask(
        self,
        task_name: str,
        message: Shareable,
        sites: Sequence[str],
        timeout_seconds: float,
        live: Live,
    ) -> Answers:
        """Ask one after another."""
        answers, began = Answers(), time.monotonic()
        for name in sorted(sites, key=lambda s: self.order.index(s) if self.order else 0):
            answers.bytes_down[name] = payload_bytes(message)
            answers.received(name, self.sites[name].ask(task_name, message, live.abort_signal))
        answers.seconds = time.monotonic() - began
        return answers


def run_in_process(
    job: Mapping[str, Any],
    sites: Sequence[str],
    folder: Path,
    run: Mapping[str, Any] | None = None,
    order: Sequence[str] = (),
    site_files: Path | None = None,
    examine: bool = False,
) -> Path:
    """Run a job over `sites`; site data come from VLTUNE_SITE_CONFIG as in the simulator.

    Args:
        job: As for `FederatedRecipe`.
        sites: Names.
        folder: Where server and sites keep their folders.
        run: `run_id`, `start_round` of a resumed run; then `resume_file` must lie in the server's
            config folder.
        order: In which order sites are asked; changes no number.
        site_files: What VLTUNE_SITE_CONFIG is while the run lasts, instead of what it is now.
        examine: Sites ask the doctor first, as under FLARE.

    Returns:
        The server's folder with adapters, metrics.jsonl and rounds.json.

    Raises:
        FederationError: The run failed; the message is the reason.
    """
    controller, context = _server(job, sites, folder / "server", dict(run or {}))
    local = {name: _local_site(name, job, folder / name, examine) for name in sites}
    controller.inquiry = LocalInquiry(local, order)
    with _site_variable(site_files):
        try:
            controller.start_controller(context)
            controller.control_flow(Signal(), context)
        finally:
            for site in local.values():
                site.executor.handle_event(EventType.END_RUN, site.context)
    output = run_folder(context)
    state = json.loads((output / STATE_FILE).read_text())
    if state["status"] != "completed":
        raise FederationError(state["reason"])
    return output


@contextmanager
def _site_variable(pattern: Path | None) -> Iterator[None]:
    before = os.environ.get(VARIABLE)
    if pattern is not None:
        os.environ[VARIABLE] = str(pattern)
    try:
        yield
    finally:
        if before is not None:
            os.environ[VARIABLE] = before
        elif pattern is not None:
            del os.environ[VARIABLE]


def _server(
    job: Mapping[str, Any], sites: Sequence[str], folder: Path, run: dict[str, Any]
) -> tuple[FederationController, FLContext]:
    """The server's components, as the recipe sets them up."""
    config = from_mapping(FederationConfig, job["federation"], "the job's federation")
    facts = {"name": job["name"], "method": job["method"]}
    persistor = AdapterPersistor(run.pop("resume_file", ""), facts)
    controller = FederationController(
        to_mapping(config), {**facts, "seed": job["seed"], "facts": job_facts(job), **run}
    )
    engine = Engine(
        make_workspace(folder, "server"),
        sites,
        aggregator=ValidatingAggregator(
            config.weight_by,
            config.max_update_norm,
            job.get("aggregation"),
            to_mapping(config.robust),
        ),
        persistor=persistor,
    )
    return controller, make_context(engine, "server")


def _local_site(name: str, job: Mapping[str, Any], folder: Path, examine: bool) -> LocalSite:
    workspace = make_workspace(folder, name)
    path = Path(workspace.get_app_config_dir(JOB_ID)) / JOB_FILE
    path.write_text(json.dumps(site_job(job)))
    executor = ParticipantExecutor(job["participant"], stream_metrics=False, examine=examine)
    return LocalSite(name, executor, make_context(Engine(workspace), name))
