import errno
from pathlib import Path

import numpy as np
import pytest
import torch
from nvflare.apis.fl_constant import ReturnCode
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.decomposers import numpy_decomposers
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.fuel.utils import fobs

from vltune.config import ConfigError
from vltune.flare.allow_list import SITE_HISTOGRAMS
from vltune.flare.exchange import (
    ExchangeError,
    evaluation_reply,
    handshake_reply,
    payload_bytes,
    round_of,
    task_message,
    to_tensors,
    update_reply,
)
from vltune.flare.failure import error_of, error_reply, public_message
from vltune.flare.intake import read_evaluation, read_handshake, read_update
from vltune.histograms import score_histograms
from vltune.parameters import LocalUpdate
from vltune.participant import Evaluation, Handshake


def wire(message: object) -> FLModel:
    numpy_decomposers.register()
    return FLModelUtils.from_shareable(fobs.loads(fobs.dumps(message)))


def test_an_update_survives_the_wire_bit_for_bit() -> None:
    tensors = {"b": torch.randn(3, 5), "a": torch.tensor(0.1)}
    scores = np.random.default_rng(3).random((29, 2))
    labels = (scores > 0.6).astype(np.int8)
    histograms = score_histograms(scores, labels, min_interval=3).to_tensors()
    update = LocalUpdate(tensors, 11, {"loss": 0.25, "mAP": float("nan")}, histograms)
    got = read_update(wire(update_reply(update, 4)), "site-1")
    assert list(got.tensors) == ["a", "b"]
    assert all(torch.equal(got.tensors[name], tensors[name]) for name in tensors)
    assert got.histograms.keys() == histograms.keys() == SITE_HISTOGRAMS
    assert all(torch.equal(got.histograms[name], histograms[name]) for name in histograms)
    assert got.num_examples == 11
    assert got.metrics["loss"] == 0.25
    assert np.isnan(got.metrics["mAP"])


def test_a_handshake_survives_the_wire() -> None:
    initial = {"a": torch.randn(2, 3)}
    shown = Handshake({"a": (2, 3)}, initial, "ff", 5, 7, {"vltune": "1"})
    got = read_handshake(wire(handshake_reply(shown, {})), "site-1")
    assert got.spec == shown.spec
    assert torch.equal(got.initial["a"], initial["a"])
    assert (got.num_examples, got.num_validation, got.facts) == (5, 7, {"vltune": "1"})


def test_a_handshake_that_describes_other_tensors_is_refused() -> None:
    shown = Handshake({"a": (3, 2)}, {"a": torch.zeros(2, 3)}, "ff", 5, 7, {})
    with pytest.raises(ExchangeError, match="site-1"):
        read_handshake(wire(handshake_reply(shown, {})), "site-1")


def test_an_evaluation_carries_no_tensors_of_the_model() -> None:
    model = wire(evaluation_reply(Evaluation({"mAP": 0.5}, {}), 3))
    assert model.params is None
    assert read_evaluation(model, "site-1").metrics == {"mAP": 0.5}


def test_a_task_carries_the_global_model_and_its_round() -> None:
    message = task_message("run", 2, {"a": torch.ones(2)}, 3, 5)
    assert round_of(message) == 3
    assert torch.equal(to_tensors(wire(message).params, "server")["a"], torch.ones(2))
    assert wire(task_message("run", 2, None, 0, 5)).params is None


def test_received_tensors_own_their_memory() -> None:
    array = np.ones(3, dtype=np.float32)
    tensor = to_tensors({"a": array}, "site-1")["a"]
    array[0] = 7
    assert tensor.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "arrays", [None, [1], {"a": [1.0]}, {1: np.ones(2)}, {"a": np.array(["x"])}]
)
def test_what_is_no_mapping_of_numeric_arrays_is_refused(arrays: object) -> None:
    with pytest.raises(ExchangeError, match="site-1"):
        to_tensors(arrays, "site-1")


@pytest.mark.parametrize("examples", [None, True, 2.5, "7"])
def test_num_examples_must_be_a_whole_number(examples: object) -> None:
    model = FLModel(params={"a": np.ones(2)}, meta={"num_examples": examples})
    with pytest.raises(ExchangeError, match="num_examples"):
        read_update(model, "site-1")


def test_metrics_must_be_numbers() -> None:
    with pytest.raises(ExchangeError, match="loss"):
        read_evaluation(FLModel(metrics={"loss": "low"}), "site-1")


def test_the_payload_is_counted_without_flares_headers() -> None:
    message = task_message("run", 2, {"a": torch.zeros(1000)}, 0, 1)
    size = payload_bytes(message)
    message.set_header("noise", "x" * 5000)
    assert payload_bytes(message) == size
    assert 4000 <= size < 4600


def test_an_error_of_ours_keeps_its_text_without_paths_and_files() -> None:
    error = ConfigError(
        "/data/ward 7/John Smith.jpg: cannot be read; see scan_0042.png and ~/x/y. Mend it."
    )
    text = public_message(error, [Path("/data/ward 7")])
    assert text == "ConfigError: <path>: cannot be read; see <path> and <path> Mend it."


@pytest.mark.parametrize("error", [RuntimeError("patient 4711"), ValueError("patient 4711")])
def test_the_text_of_a_foreign_error_stays(error: Exception) -> None:
    assert "4711" not in public_message(error)
    assert type(error).__name__ in public_message(error)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "full", "/data/ward 7/4711.png"), "No space left on device"),
        (FileNotFoundError(errno.ENOENT, "gone", "/data/4711.png"), "No such file"),
        (MemoryError("4711"), "out of memory at this site"),
        (torch.OutOfMemoryError("CUDA out of memory: 4711"), "out of memory at this site"),
    ],
)
def test_what_the_system_ran_out_of_is_told_without_the_file(error: Exception, told: str) -> None:
    text = public_message(error)
    assert told in text
    assert "4711" not in text


def test_an_allocation_that_fails_is_told_from_other_errors_of_torch() -> None:
    with pytest.raises(RuntimeError) as failed:
        torch.ones(1 << 50)
    assert "out of memory" in public_message(failed.value)
    with pytest.raises(RuntimeError) as failed:
        torch.ones(2) @ torch.ones(3)
    assert "memory" not in public_message(failed.value)


def test_a_failed_task_says_why() -> None:
    reply = error_reply(ReturnCode.EXECUTION_EXCEPTION, "x" * 9999)
    assert error_of(reply).startswith("EXECUTION_EXCEPTION: xxx")
    assert len(error_of(reply)) < 600
