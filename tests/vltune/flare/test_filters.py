from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.decomposers import numpy_decomposers
from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy
from nvflare.fuel.utils import fobs

from vltune.flare.exchange import evaluation_reply, handshake_reply, update_reply
from vltune.flare.failure import HEADER_ERROR, error_reply
from vltune.flare.filters import SPEC_PROPERTY, SharedOnlyFilter
from vltune.histograms import score_histograms
from vltune.parameters import LocalUpdate
from vltune.participant import Evaluation, Handshake

HISTOGRAMS = score_histograms(
    np.random.default_rng(3).random((29, 2)),
    np.random.default_rng(5).integers(0, 2, (29, 2)).astype(np.int8),
    min_interval=3,
).to_tensors()
SPEC = {"bias": (3,), "weight": (2, 3)}
SECRET = 0.123456789


def context(spec: object = SPEC) -> FLContext:
    made = FLContext()
    made.set_prop(SPEC_PROPERTY, spec, private=True, sticky=True)
    return made


def update(**changes: Any) -> Shareable:
    tensors = {"bias": torch.zeros(3), "weight": torch.ones(2, 3)}
    metrics = {"loss": 0.5, "mAP": 0.25}
    return update_reply(LocalUpdate(tensors | changes, 7, metrics, HISTOGRAMS), 0)


def content(reply: Shareable) -> dict[str, Any]:
    return reply["DXO"]


def passes(reply: object) -> bool:
    """Whether it passes; where not, nothing but a return code and a reason may be left."""
    numpy_decomposers.register()
    result = SharedOnlyFilter().process(reply, context())
    if result is reply:
        return True
    assert set(result) == {"__headers__"}
    assert result.get_return_code() != ReturnCode.OK
    raw = fobs.dumps(result)
    assert len(raw) < 1000
    assert np.float32(SECRET).tobytes() not in raw
    assert b"secret" not in raw
    return False


def test_updates_handshakes_and_evaluations_pass() -> None:
    assert passes(update())
    initial = {"bias": torch.zeros(3), "weight": torch.ones(2, 3)}
    assert passes(handshake_reply(Handshake(SPEC, initial, "ff", 5, 7, {"vltune": "1"}), {}))
    assert passes(evaluation_reply(Evaluation({"mAP": float("nan")}, {}), 0))


SPOILED: dict[str, Callable[[Shareable], Any]] = {
    "unknown tensor": lambda s: content(s)["data"].update(secret=np.float32([SECRET])),
    "missing tensor": lambda s: content(s)["data"].pop("bias"),
    "other type": lambda s: content(s)["data"].update(bias=np.full(3, SECRET)),
    "other shape": lambda s: content(s)["data"].update(bias=np.float32([SECRET] * 4)),
    "no array": lambda s: content(s)["data"].update(bias=[SECRET]),
    "unknown metric": lambda s: content(s)["meta"]["initial_metrics"].update(secret=SECRET),
    "metric of text": lambda s: content(s)["meta"]["initial_metrics"].update(loss="secret"),
    "unknown meta": lambda s: content(s)["meta"].update(secret="secret"),
    "unknown histogram": lambda s: content(s)["meta"]["histograms"].update(
        secret=np.zeros(3, np.int32)
    ),
    "scores as histogram": lambda s: content(s)["meta"]["histograms"].update(
        positives=np.float32([SECRET])
    ),
    "examples of text": lambda s: content(s)["meta"].update(num_examples="secret"),
    "extra key": lambda s: s.update(secret=np.float32([SECRET])),
    "extra header": lambda s: s.set_header("secret", "secret"),
    "kind": lambda s: content(s).update(kind="COLLECTION"),
    "no content": lambda s: s.pop("DXO"),
    "content of text": lambda s: s.update(DXO="secret"),
    "meta of text": lambda s: content(s).update(meta="secret"),
    "headers of text": lambda s: s.update(__headers__="secret"),
}


@pytest.mark.parametrize("name", list(SPOILED))
def test_anything_else_is_blocked_and_nothing_of_it_leaves(name: str) -> None:
    reply = update()
    SPOILED[name](reply)
    assert not passes(reply)


@pytest.mark.parametrize("reply", [None, "secret", {"secret": SECRET}])
def test_what_is_no_message_is_blocked(reply: object) -> None:
    assert not passes(reply)


def test_without_a_known_set_of_shared_tensors_nothing_leaves() -> None:
    for spec in (None, {}, "bias weight"):
        result = SharedOnlyFilter().process(update(), context(spec))
        assert result.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR


def test_a_site_can_give_its_own_list() -> None:
    narrow = SharedOnlyFilter(shared_keys=["bias"]).process(update(), context())
    assert narrow.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    reply = update()
    assert SharedOnlyFilter(["bias", "weight", "more"]).process(reply, context()) is reply


def test_a_sites_own_flare_filter_can_run_before() -> None:
    """The update's differences from zero, all 1 or 0, are cut to +-0.01 by FLARE's own filter."""
    own = PercentilePrivacy(percentile=10, gamma=0.01, data_kinds=[DataKind.WEIGHTS])
    reply = own.process(update(), context())
    assert content(reply)["data"]["weight"].max() <= np.float32(0.01)
    assert passes(reply)


def test_a_failed_task_passes_as_its_reason_alone() -> None:
    reply = error_reply(ReturnCode.EXECUTION_EXCEPTION, "ConfigError: no data")
    reply["DXO"] = DXO(DataKind.WEIGHTS, {"secret": np.float32([SECRET])}).to_dict()
    result = SharedOnlyFilter().process(reply, context())
    assert set(result) == {"__headers__"}
    assert result.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert result.get_header(HEADER_ERROR) == "ConfigError: no data"


def test_a_handshake_of_other_facts_is_blocked() -> None:
    initial = {"bias": torch.zeros(3), "weight": torch.ones(2, 3)}
    for facts in ({"patients": "secret"}, {"vltune": "x" * 9999}):
        assert not passes(handshake_reply(Handshake(SPEC, initial, "ff", 5, 7, facts), {}))
