"""What travels between server and sites: FLARE messages to and from our own types.

Tensors travel as fp32 NumPy arrays inside a FLARE DXO, so that a site's own FLARE filters
(privacy.json) can work on them. Beside them go only the scalars, histograms and facts that the
lists below name.
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.abstract.fl_model import FLModel, MetaKey, ParamsType
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.decomposers import numpy_decomposers
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.fuel.utils import fobs
from torch import Tensor

from vltune.geneval_prompts import TAGS
from vltune.histograms import ScoreHistograms
from vltune.parameters import LocalUpdate, spec_of
from vltune.participant import Evaluation, Handshake

TASK_PREPARE = "prepare"
TASK_TRAIN = "train"
TASK_VALIDATE = "validate"
TASKS = (TASK_PREPARE, TASK_TRAIN, TASK_VALIDATE)

TASK_COSINES = frozenset({"task_cosine", *(f"task_cosine_{layer}" for layer in range(1, 200))})
TRAIN_METRICS = TASK_COSINES | {
    "loss",
    "loss_understanding",
    "loss_generation",
    "steps",
    "steps_warm_up",
    "seconds_train",
    "seconds_task",
}
UNIFIED_METRICS = frozenset(
    {"vqa_accuracy", "generation_loss", "geneval", *(f"geneval_{tag}" for tag in TAGS)}
)
VALIDATION_METRICS = (
    UNIFIED_METRICS
    | {f"test_{name}" for name in UNIFIED_METRICS}
    | {f"zero_shot_{name}" for name in ("vqa_accuracy", "generation_loss", "geneval")}
    | {
        "mAP",
        "CF1",
        "OF1",
        "zero_shot_mAP",
        "accuracy",
        "soft_accuracy",
        "token_f1",
        "rouge_l",
        "preference_accuracy",
        "zero_shot_accuracy",
        "test_accuracy",
        "test_soft_accuracy",
        "test_token_f1",
        "test_rouge_l",
        "test_preference_accuracy",
        "num_classes_scored",
        "num_withheld",
        "seconds_evaluate",
    }
)
SITE_METRICS = TRAIN_METRICS | VALIDATION_METRICS | {"seconds_prepare"}
"""Scalars that may leave a site; docs/privacy.md says what each is."""

SITE_HISTOGRAMS = frozenset(
    {"class_offsets", "lows", "highs", "positives", "negatives", "average_precisions"}
)
"""Wire names of `vltune.histograms.ScoreHistograms`, flat int32 counts."""

SITE_FACTS = frozenset(
    {"vltune", "backbone", "preprocessing", "class_list", "conditions", "adapter", "judge"}
)
"""Facts of the handshake, strings that must agree between sites."""

HANDSHAKE_KEYS = frozenset({"spec", "initial_hash", "num_examples", "num_validation", "facts"})

META_EXAMPLES = "num_examples"
META_HISTOGRAMS = "histograms"
META_HANDSHAKE = "handshake"
META_METRICS: str = MetaKey.INITIAL_METRICS

HEADER_RUN = "vltune_run"
HEADER_SITES = "vltune_num_sites"
HEADER_ERROR = "vltune_error"

PAYLOAD_KEY = "DXO"
MAX_ERROR = 500

_PATH = re.compile(
    r"(?:[A-Za-z]:)?[\w.~{}-]*[/\\][^\s'\",;:)\]]*"
    r"|\b[\w-]+\.(?:jpe?g|png|bmp|tiff?|gif|webp|dcm|jsonl?|parquet|ya?ml|csv|npy|npz|safetensors|pth?|txt)\b"
)


class ExchangeError(ValueError):
    """A message is not what the protocol says; the text names the part and what was expected."""


def to_arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """CPU tensors to NumPy arrays, sorted by name."""
    return {name: tensors[name].detach().cpu().numpy() for name in sorted(tensors)}


def to_tensors(arrays: object, source: str) -> dict[str, Tensor]:
    """Received arrays to tensors that own their memory.

    Raises:
        ExchangeError: `arrays` is no mapping of names to numeric NumPy arrays.
    """
    if not isinstance(arrays, Mapping):
        raise ExchangeError(f"{source}: expected a mapping of arrays, got {type(arrays).__name__}")
    tensors = {}
    for name, value in arrays.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray):
            raise ExchangeError(
                f"{source}: expected names and arrays, got {type(name).__name__} and "
                f"{type(value).__name__}"
            )
        if value.dtype.kind not in "fi":
            raise ExchangeError(f"{source}: {name} has type {value.dtype}, expected a number")
        tensors[name] = torch.from_numpy(np.array(value, order="C"))
    return tensors


def payload_bytes(message: Shareable) -> int:
    """Size of the content that FLARE serialises, without its envelope of headers."""
    numpy_decomposers.register()
    return len(fobs.dumps(message.get(PAYLOAD_KEY)))


def task_message(
    run_id: str,
    num_sites: int,
    tensors: Mapping[str, Tensor] | None,
    round_number: int,
    total_rounds: int,
) -> Shareable:
    """Build a task: the global model, or nothing in `prepare`."""
    content: dict[str, Any] = (
        {"metrics": {}}
        if tensors is None
        else {"params": to_arrays(tensors), "params_type": ParamsType.FULL}
    )
    model = FLModel(current_round=round_number, total_rounds=total_rounds, **content)
    message: Shareable = FLModelUtils.to_shareable(model)
    message.set_header(HEADER_RUN, run_id)
    message.set_header(HEADER_SITES, num_sites)
    return message


def round_of(message: Shareable) -> int:
    """The round a message belongs to.

    Raises:
        ExchangeError: It names none.
    """
    value = message.get_header(AppConstants.CURRENT_ROUND)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ExchangeError(f"message: expected a round number, got {value!r}")
    return value


def handshake_reply(handshake: Handshake, metrics: Mapping[str, float]) -> Shareable:
    """Answer to `prepare`: seeded initial tensors and what must agree between sites."""
    return _reply(
        to_arrays(handshake.initial),
        metrics,
        {
            META_HANDSHAKE: {
                "spec": {name: list(shape) for name, shape in handshake.spec.items()},
                "initial_hash": handshake.initial_hash,
                "num_examples": handshake.num_examples,
                "num_validation": handshake.num_validation,
                "facts": dict(handshake.facts),
            }
        },
    )


def update_reply(update: LocalUpdate, round_number: int) -> Shareable:
    """Answer to `train`: all shared tensors, metrics and histograms of the received model."""
    meta = {
        META_EXAMPLES: update.num_examples,
        META_HISTOGRAMS: to_arrays(update.histograms),
    }
    return _reply(to_arrays(update.tensors), update.metrics, meta, round_number)


def evaluation_reply(evaluation: Evaluation, round_number: int) -> Shareable:
    """Answer to `validate`: metrics and histograms, no tensors of the model."""
    meta = {META_HISTOGRAMS: to_arrays(evaluation.histograms)}
    return _reply(None, evaluation.metrics, meta, round_number)


def _reply(
    arrays: dict[str, NDArray[Any]] | None,
    metrics: Mapping[str, float],
    meta: dict[str, Any],
    round_number: int = 0,
) -> Shareable:
    plain = {name: float(metrics[name]) for name in sorted(metrics)}
    model = FLModel(params=arrays, metrics=plain, current_round=round_number, meta=meta)
    reply: Shareable = FLModelUtils.to_shareable(model)
    return reply


def read_handshake(model: FLModel, source: str) -> Handshake:
    """Parse the answer to `prepare`.

    Raises:
        ExchangeError: A part is missing, unknown or of the wrong type, or the tensors are not those
            that the answer describes.
    """
    content = model.meta.get(META_HANDSHAKE)
    if not isinstance(content, dict) or set(content) != HANDSHAKE_KEYS:
        raise ExchangeError(f"{source}: expected a handshake with {sorted(HANDSHAKE_KEYS)}")
    initial = to_tensors(model.params, source)
    spec = {str(name): tuple(shape) for name, shape in dict(content["spec"]).items()}
    if spec != spec_of(initial):
        raise ExchangeError(f"{source}: initial tensors are not those of the handshake")
    return Handshake(
        spec=spec,
        initial=initial,
        initial_hash=str(content["initial_hash"]),
        num_examples=int(content["num_examples"]),
        num_validation=int(content["num_validation"]),
        facts={str(name): str(value) for name, value in dict(content["facts"]).items()},
    )


def read_update(model: FLModel, source: str) -> LocalUpdate:
    """Parse the answer to `train`; values are judged by the aggregator.

    Raises:
        ExchangeError: A part is missing or of the wrong type.
    """
    examples = model.meta.get(META_EXAMPLES)
    if not isinstance(examples, int) or isinstance(examples, bool):
        raise ExchangeError(f"{source}: num_examples is {examples!r}, expected a whole number")
    evaluation = read_evaluation(model, source)
    return LocalUpdate(
        to_tensors(model.params, source), examples, evaluation.metrics, evaluation.histograms
    )


def read_evaluation(model: FLModel, source: str) -> Evaluation:
    """Parse metrics and histograms.

    Raises:
        ExchangeError: A metric is no number, or a histogram is no array.
        HistogramError: The histograms contradict themselves.
    """
    metrics = model.metrics or {}
    wrong = [name for name, value in metrics.items() if not is_number(value)]
    if wrong:
        raise ExchangeError(f"{source}: metrics are not numbers: {sorted(map(str, wrong))}")
    histograms = to_tensors(model.meta.get(META_HISTOGRAMS, {}), f"{source}: histograms")
    if histograms:
        ScoreHistograms.from_tensors(histograms, f"{source}: histograms")
    return Evaluation({str(k): float(v) for k, v in metrics.items()}, histograms)


def is_number(value: object) -> bool:
    """Say whether a metric is a plain int or float; NaN (nothing to measure) is allowed."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isinf(value)


def error_reply(return_code: str, message: str) -> Shareable:
    """Answer without content that carries a reason the server may show."""
    return make_reply(return_code, {HEADER_ERROR: message[:MAX_ERROR]})


def error_of(message: Shareable) -> str:
    """Return code and reason of a failed task."""
    reason = message.get_header(HEADER_ERROR, "")
    text = str(reason)[:MAX_ERROR] if reason else "no reason given; see the site's own log"
    return f"{message.get_return_code()}: {text}"


def public_message(error: BaseException, private_paths: Iterable[Path] = ()) -> str:
    """What the server may know of a failure at a site.

    The class, and the text of our own errors without anything that looks like a path or a file.
    Texts of foreign errors may quote data, so they stay in the site's log.

    Args:
        error: What was caught.
        private_paths: The site's own folders; what follows one of them goes too, spaces included.
    """
    name = type(error).__name__
    if not isinstance(error, ValueError) or not type(error).__module__.startswith("vltune"):
        return f"{name} (the site's own log has the text)"
    text = str(error)
    for path in sorted(map(str, private_paths), key=len, reverse=True):
        text = re.sub(re.escape(path) + r"[^:;,'\"\n]*", "<path>", text)
    return f"{name}: {_PATH.sub('<path>', text)}"[:MAX_ERROR]
