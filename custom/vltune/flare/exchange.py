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
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel, MetaKey, ParamsType
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.decomposers import numpy_decomposers
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.fuel.utils import fobs
from torch import Tensor

from vltune.parameters import LocalUpdate
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
MAX_NAME = 500
"""Characters."""
_MAX_NUMBER = 1e300
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


def is_number(value: object) -> bool:
    """Say whether a metric is a plain int or float; NaN (nothing to measure) is allowed."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -_MAX_NUMBER < value < _MAX_NUMBER or value != value
