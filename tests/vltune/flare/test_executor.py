import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from linear_site import MARKER
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.fuel.utils import fobs

from vltune.flare.exchange import task_message
from vltune.flare.executor import JOB_FILE, ExecutorError, ParticipantExecutor, find_builder
from vltune.flare.failure import HEADER_ERROR
from vltune.flare.intake import read_handshake, read_update
from vltune.parameters import LocalUpdate
from vltune_lab.jobs.in_process import JOB_ID, Engine, LocalSite, make_context, make_workspace

Start = Callable[..., LocalSite]


@pytest.fixture
def start(tmp_path: Path, sites: Any, job: Any) -> Start:
    """Start the executor of site-1 as FLARE would in a new process."""
    sites()

    def make(**changes: Any) -> LocalSite:
        workspace = make_workspace(tmp_path / "site", "site-1")
        folder = Path(workspace.get_app_config_dir(JOB_ID))
        (folder / JOB_FILE).write_text(json.dumps(job(**changes)))
        executor = ParticipantExecutor("linear_site.build_participant", stream_metrics=False)
        return LocalSite("site-1", executor, make_context(Engine(workspace), "site-1"))

    return make


def prepare(site: LocalSite, run: str = "run") -> dict[str, torch.Tensor]:
    reply = site.ask("prepare", task_message(run, 2, None, 0, 5), Signal())
    return read_handshake(FLModelUtils.from_shareable(reply), "site-1").initial


def train(site: LocalSite, shared: Any, number: int, run: str = "run") -> LocalUpdate:
    reply = site.ask("train", task_message(run, 2, shared, number, 5), Signal())
    assert reply.get_return_code() == ReturnCode.OK, reply
    return read_update(FLModelUtils.from_shareable(reply), "site-1")


def stop(site: LocalSite) -> None:
    site.executor.handle_event(EventType.END_RUN, site.context)


def test_a_round_measures_what_was_received_and_trains_from_it(start: Start) -> None:
    site = start()
    initial = prepare(site)
    first = train(site, initial, 0)
    second = train(site, first.tensors, 1)
    assert first.num_examples == 17
    assert second.metrics["loss"] < first.metrics["loss"]
    assert second.metrics["mAP"] > first.metrics["mAP"] + 0.1
    assert second.histograms
    assert first.metrics["seconds_task"] >= first.metrics["seconds_evaluate"] > 0
    stop(site)


def test_state_survives_a_process_for_each_round(start: Start) -> None:
    """Three rounds in one process and in four give the same tensors, bit for bit."""
    resident = start()
    shared = prepare(resident, "resident")
    for number in range(3):
        shared = train(resident, shared, number, "resident").tensors
    stop(resident)

    site = start()
    single = prepare(site)
    stop(site)
    for number in range(3):
        site = start()
        single = train(site, single, number).tensors
        stop(site)
    assert all(torch.equal(shared[name], single[name]) for name in shared)


def test_a_repeated_round_does_not_train_twice(start: Start) -> None:
    site = start()
    shared = train(site, prepare(site), 0).tensors
    first = train(site, shared, 1)
    again = train(site, shared, 1)
    assert all(torch.equal(first.tensors[n], again.tensors[n]) for n in first.tensors)
    stop(site)


def test_only_shared_tensors_are_on_the_wire(start: Start) -> None:
    """The personal offset is trained and saved here; neither it nor its start is in the message."""
    site = start()
    shared = prepare(site)
    reply = site.ask("train", task_message("run", 2, shared, 0, 5), Signal())
    raw = fobs.dumps(reply)
    personal = site.executor._built.personal_state()["offset"]
    for value in (personal, torch.full((5,), MARKER)):
        for piece in (value.numpy().tobytes(), value[:1].numpy().tobytes()):
            assert piece not in raw
    assert raw.count(b"offset") == raw.count(b"class_offsets") == 1
    assert b"train.json" not in raw
    assert shared["weight"].numpy().tobytes() not in raw
    assert read_update(FLModelUtils.from_shareable(reply), "").tensors.keys() == {"bias", "weight"}
    stop(site)


def test_a_method_that_adds_a_personal_tensor_is_blocked(start: Start) -> None:
    site = start(trouble={"site-1": [0, "leak"]})
    reply = site.ask("train", task_message("run", 2, prepare(site), 0, 5), Signal())
    assert "not on the allow-list" in reply.get_header(HEADER_ERROR)
    assert b"offset" not in fobs.dumps(reply)
    stop(site)


def test_abort_is_honoured_inside_the_batch_loop(start: Start) -> None:
    site = start(trouble={"site-1": [0, "slow"]})
    shared, signal = prepare(site), Signal()
    threading.Timer(0.3, lambda: signal.trigger(True)).start()
    began = time.monotonic()
    reply = site.ask("train", task_message("run", 2, shared, 0, 5), signal)
    assert reply.get_return_code() == ReturnCode.TASK_ABORTED
    assert time.monotonic() - began < 5
    assert not list(site.executor._state.folder.glob("*.safetensors"))
    stop(site)


def ask_failing(site: LocalSite) -> Shareable:
    reply = site.ask("train", task_message("run", 2, prepare(site), 0, 5), Signal())
    stop(site)
    return reply


def test_an_exception_becomes_an_answer_without_data(start: Start) -> None:
    reply = ask_failing(start(trouble={"site-1": [0, "raise"]}))
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert reply.get_header(HEADER_ERROR) == "RuntimeError (the site's own log has the text)"


def test_our_own_errors_keep_their_text_without_paths(start: Start) -> None:
    reply = ask_failing(start(trouble={"site-1": [0, "value"]}))
    assert reply.get_header(HEADER_ERROR) == "ParameterError: <path>: row 3 is wrong. Mend it."


def test_the_full_text_is_in_the_sites_own_log(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    ask_failing(start(trouble={"site-1": [0, "value"]}))
    assert re.search(r"data of sites/site-1/train.json: row 3", caplog.text)


def test_an_empty_site_says_so(start: Start, tmp_path: Path) -> None:
    (tmp_path / "data of sites/site-1/train.json").write_text('{"x": [], "y": []}')
    reply = start().ask("prepare", task_message("run", 2, None, 0, 5), Signal())
    assert reply.get_header(HEADER_ERROR) == "ParameterError: <path>: no examples. Add some."


def test_a_site_without_its_file_says_so(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLTUNE_SITE_CONFIG", "/nowhere/{site}.yaml")
    reply = start().ask("prepare", task_message("run", 2, None, 0, 5), Signal())
    told = reply.get_header(HEADER_ERROR)
    assert told.startswith("ConfigError: site site-1: no vltune_site.yaml")


def test_a_second_process_of_the_same_site_is_refused(start: Start) -> None:
    first = start()
    prepare(first)
    reply = start().ask("prepare", task_message("run", 2, None, 0, 5), Signal())
    assert "two sites have the same name" in reply.get_header(HEADER_ERROR)
    stop(first)


def test_an_unknown_task_and_a_broken_message_are_answered(start: Start) -> None:
    site = start()
    message = task_message("run", 2, None, 0, 5)
    assert site.ask("dance", message, Signal()).get_return_code() == ReturnCode.TASK_UNKNOWN
    reply = site.ask("train", Shareable(), Signal())
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "round number" in reply.get_header(HEADER_ERROR)


@pytest.mark.parametrize("dotted", ["nonsense", "no.such.module", "linear_site.no_such_builder"])
def test_a_wrong_builder_is_named(dotted: str) -> None:
    with pytest.raises(ExecutorError, match=dotted):
        find_builder(dotted)
