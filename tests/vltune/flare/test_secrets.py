"""Secrets planted in a site's files: nothing that reaches the server, or lies there, holds them."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from linear_site import make_job
from nvflare.apis.analytix import ANALYTIC_EVENT_TYPE
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.signal import Signal
from nvflare.app_common.decomposers import numpy_decomposers
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.fuel.utils import fobs
from planted_site import DAMAGES, NUMBER, SECRET, write_planted_site

from vltune.flare.exchange import task_message
from vltune.flare.executor import JOB_FILE, ParticipantExecutor
from vltune.flare.filters import SharedOnlyFilter
from vltune.flare.intake import read_handshake
from vltune_lab.jobs.in_process import JOB_ID, Engine, make_context, make_workspace
from vltune_lab.jobs.launch import make_recipe
from vltune_lab.jobs.simulate import simulate

PLANTED = re.compile(f"{SECRET}|{NUMBER}".encode())
WARD = f"ward of {SECRET}"
BUILDER = "planted_site.build_participant"


class Listener(FLComponent):
    """Keeps what is sent as an event."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == ANALYTIC_EVENT_TYPE:
            self.sent.append(fobs.dumps(fl_ctx.get_prop(FLContextKey.EVENT_DATA)))


def plant(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, damage: str = "") -> Path:
    place = folder / WARD / name
    write_planted_site(place, name, len(name), damage)
    config = folder / WARD / "{site}" / "vltune_site.yaml"
    monkeypatch.setenv("VLTUNE_SITE_CONFIG", str(config))
    return place


def sent_of_a_whole_run(folder: Path) -> tuple[list[str], list[bytes], list[bytes]]:
    """Return codes, messages and events of the three tasks, as they leave the site."""
    numpy_decomposers.register()
    workspace = make_workspace(folder / "flare", "site-1")
    config = Path(workspace.get_app_config_dir(JOB_ID))
    (config / JOB_FILE).write_text(json.dumps(make_job(participant=BUILDER)))
    executor, gate, listener = ParticipantExecutor(BUILDER), SharedOnlyFilter(), Listener()
    context = make_context(Engine(workspace, listener=listener), "site-1")
    codes, sent, shared = [], [], None
    for task in ("prepare", "train", "validate"):
        message = task_message("run", 1, shared, 0, 1)
        reply = gate.process(executor.execute(task, message, context, Signal()), context)
        codes.append(str(reply.get_return_code()))
        sent.append(fobs.dumps(reply))
        if codes[-1] != ReturnCode.OK:
            break
        if task == "prepare":
            shared = read_handshake(FLModelUtils.from_shareable(reply), "site-1").initial
    executor.close()
    return codes, sent, listener.sent


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_message_holds_a_secret(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Every file but one is in order; the site's own log may hold, and does hold, the secret."""
    plant(tmp_path, "site-1", monkeypatch, damage)
    codes, sent, events = sent_of_a_whole_run(tmp_path)
    assert codes == ([ReturnCode.EXECUTION_EXCEPTION] if damage else [ReturnCode.OK] * 3)
    assert bool(events) is not bool(damage)
    for message in (*sent, *events):
        assert not PLANTED.search(message), message[-400:]
    if damage:
        assert re.search(rb"[A-Z][A-Za-z]+Error: ", sent[0])
        assert PLANTED.search(caplog.text.encode())


@pytest.mark.flare
def test_nothing_at_the_server_of_a_simulated_run_holds_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """site-3 fails with an error about its files; logs, records and TensorBoard are searched."""
    monkeypatch.setenv(
        "PYTHONPATH",
        os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(Path(__file__).parent)]),
    )
    for name in ("site-1", "site-2"):
        plant(tmp_path, name, monkeypatch)
    plant(tmp_path, "site-3", monkeypatch, "coco names")
    job = make_job(participant=BUILDER, federation={"tensorboard": True})
    make_recipe(job).export(str(tmp_path / "jobs"))
    workspace = tmp_path / "workspace"
    server = simulate(
        tmp_path / "jobs" / "linear",
        ("site-1", "site-2", "site-3"),
        workspace,
        parallel=3,
        on_round=lambda record: None,
        timeout_seconds=240.0,
    )
    state = json.loads((server / "rounds.json").read_text())
    assert state["status"] == "completed"
    assert "AnnotationError" in state["left_out"]["site-3"]
    searched = [path for path in (workspace / "server").rglob("*") if path.is_file()]
    searched += [path for path in (tmp_path / "jobs").rglob("*") if path.is_file()]
    names = {path.name for path in searched}
    assert {"metrics.jsonl", "rounds.json", "last_global_adapter.safetensors"} <= names
    assert any("tfevents" in name for name in names)
    assert any(name.startswith("log") for name in names)
    held = [path for path in searched if PLANTED.search(path.read_bytes())]
    assert not held
    of_sites = [p for p in workspace.glob("site-*/**/log*") if p.is_file()]
    assert any(PLANTED.search(path.read_bytes()) for path in of_sites)
