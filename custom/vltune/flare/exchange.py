"""What travels between server and sites: FLARE messages to and from our own types.

Tensors travel as fp32 NumPy arrays inside a FLARE DXO, so that a site's own FLARE filters
(privacy.json) can work on them. Beside them go only the scalars, histograms and facts that
`allow_list.py` names.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvflare.apis.dxo import DataKind
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel, MetaKey, ParamsType
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.decomposers import numpy_decomposers
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.fuel.utils import fobs
from torch import Tensor

from vltune.flare.allow_list import HANDSHAKE_KEYS, SITE_FACTS, SITE_METRICS
from vltune.histograms import ScoreHistograms
from vltune.parameters import LocalUpdate, spec_of
from vltune.participant import Evaluation, Handshake

TASK_PREPARE = "prepare"
TASK_TRAIN = "train"
TASK_VALIDATE = "validate"
TASKS = (TASK_PREPARE, TASK_TRAIN, TASK_VALIDATE)

META_EXAMPLES = "num_examples"
META_HISTOGRAMS = "histograms"
META_HANDSHAKE = "handshake"
META_METRICS: str = MetaKey.INITIAL_METRICS

HEADER_RUN = "vltune_run"
HEADER_SITES = "vltune_num_sites"

PAYLOAD_KEY = "DXO"

MAX_SHARED_VALUES = 2**28
"""Numbers in all shared tensors together, 1 GiB as fp32; adapters have some millions."""
MAX_HISTOGRAM_VALUES = 2**24
MAX_EXAMPLES = 10**9
MAX_NAME = 500
MAX_FACT = 8192
"""Characters."""
_MAX_NUMBER = 1e300
_KINDS = (DataKind.WEIGHTS, DataKind.WEIGHT_DIFF, DataKind.METRICS)
_NUMBERS = tuple(map(np.dtype, ("f2", "f4", "f8", "i1", "i2", "i4", "i8")))


class ExchangeError(ValueError):
    """A message is not what the protocol says; the text names the part and what was expected."""


def to_arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """CPU tensors to NumPy arrays, sorted by name."""
    return {name: tensors[name].detach().cpu().numpy() for name in sorted(tensors)}


def to_tensors(
    arrays: object, source: str, most_values: int = MAX_SHARED_VALUES
) -> dict[str, Tensor]:
    """Received arrays to tensors that own their memory.

    Args:
        arrays: What came.
        source: Who sent it, for the message.
        most_values: More values than these together are refused before any is copied.

    Raises:
        ExchangeError: `arrays` is no mapping of names to numeric NumPy arrays, or too large.
    """
    if not isinstance(arrays, Mapping):
        raise ExchangeError(f"{source}: expected a mapping of arrays, got {type(arrays).__name__}")
    num_values = 0
    for name, value in arrays.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray):
            raise ExchangeError(
                f"{source}: expected names and arrays, got {type(name).__name__} and "
                f"{type(value).__name__}"
            )
        if not name.isprintable() or len(name) > MAX_NAME:
            raise ExchangeError(
                f"{source}: a tensor's name has {len(name)} characters, some not printable, "
                f"expected at most {MAX_NAME} that are"
            )
        if value.dtype not in _NUMBERS or not value.dtype.isnative:
            raise ExchangeError(f"{source}: {name} has type {value.dtype}, expected a number")
        num_values += value.size
    if num_values > most_values:
        raise ExchangeError(f"{source}: {num_values} values, expected at most {most_values}")
    return {name: torch.from_numpy(np.array(value, order="C")) for name, value in arrays.items()}


def check_form(message: Shareable, source: str) -> None:
    """Refuse what is no FLARE data exchange object of a kind that the protocol has, or too large.

    FLARE takes an object of any unknown kind for full weights.

    Raises:
        ExchangeError: Another form or size.
    """
    content = message.get(PAYLOAD_KEY)
    num_values = _size_of(content)
    if num_values > MAX_SHARED_VALUES:
        raise ExchangeError(
            f"{source}: its answer has {num_values} values or more, expected at most "
            f"{MAX_SHARED_VALUES}"
        )
    kind = content.get("kind") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ExchangeError(f"{source}: its answer cannot be read: neither tensors nor metrics")


def _size_of(content: object) -> int:
    """Numbers and other values of a message; nothing is copied, no nesting is too deep for it."""
    total, waiting = 0, [content]
    while waiting and total <= MAX_SHARED_VALUES:
        item = waiting.pop()
        total += 1
        if isinstance(item, np.ndarray):
            total += item.size
        elif isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, list | tuple):
            waiting.extend(item)
        elif isinstance(item, str | bytes | bytearray):
            total += len(item) // 4
    return total


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
    spec, facts = content["spec"], content["facts"]
    if not _is_spec(spec) or {n: tuple(shape) for n, shape in spec.items()} != spec_of(initial):
        raise ExchangeError(f"{source}: initial tensors are not those of the handshake")
    if not isinstance(facts, dict) or not set(facts) <= SITE_FACTS:
        raise ExchangeError(f"{source}: facts of the handshake, expected {sorted(SITE_FACTS)}")
    if not all(_is_fact(text) for text in (content["initial_hash"], *facts.values())):
        raise ExchangeError(
            f"{source}: a fact of the handshake is no printable text of at most {MAX_FACT} "
            "characters"
        )
    _read_metrics(model, source)
    return Handshake(
        spec=spec_of(initial),
        initial=initial,
        initial_hash=content["initial_hash"],
        num_examples=_count(content["num_examples"], "num_examples", source),
        num_validation=_count(content["num_validation"], "num_validation", source),
        facts=dict(facts),
    )


def read_update(model: FLModel, source: str, most_values: int = MAX_SHARED_VALUES) -> LocalUpdate:
    """Parse the answer to `train`; values are judged by the aggregator.

    Raises:
        ExchangeError: A part is missing or of the wrong type, or there are more values than
            `most_values`.
    """
    examples = _count(model.meta.get(META_EXAMPLES), "num_examples", source)
    evaluation = read_evaluation(model, source)
    tensors = to_tensors(model.params, source, most_values)
    return LocalUpdate(tensors, examples, evaluation.metrics, evaluation.histograms)


def read_evaluation(model: FLModel, source: str) -> Evaluation:
    """Parse metrics and histograms.

    Raises:
        ExchangeError: A metric is unknown or no number, or a histogram is no array.
        HistogramError: The histograms contradict themselves.
    """
    metrics = _read_metrics(model, source)
    histograms = to_tensors(
        model.meta.get(META_HISTOGRAMS, {}), f"{source}: histograms", MAX_HISTOGRAM_VALUES
    )
    if histograms:
        ScoreHistograms.from_tensors(histograms, f"{source}: histograms")
    return Evaluation(metrics, histograms)


def _read_metrics(model: FLModel, source: str) -> dict[str, float]:
    metrics = {} if model.metrics is None else model.metrics
    unknown = [name for name in metrics if name not in SITE_METRICS]
    if unknown:
        raise ExchangeError(f"{source}: {len(unknown)} metrics that are not on the allow-list")
    wrong = sorted(name for name, value in metrics.items() if not is_number(value))
    if wrong:
        raise ExchangeError(f"{source}: metrics are not numbers: {wrong}")
    return {name: float(value) for name, value in metrics.items()}


def _count(value: object, what: str, source: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ExchangeError(
            f"{source}: {what} is a {type(value).__name__}, expected a whole number"
        )
    if not -MAX_EXAMPLES <= value <= MAX_EXAMPLES:
        raise ExchangeError(f"{source}: {what} is beyond {MAX_EXAMPLES}")
    return value


def _is_spec(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(shape, list | tuple) and all(type(size) is int for size in shape)
        for shape in value.values()
    )


def _is_fact(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_FACT and value.isprintable()


def is_number(value: object) -> bool:
    """Say whether a metric is a plain int or float; NaN (nothing to measure) is allowed."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -_MAX_NUMBER < value < _MAX_NUMBER or value != value
