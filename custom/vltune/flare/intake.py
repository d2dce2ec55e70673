"""What the server reads of a site's answer: strict, bounded, and with a reason where it refuses.

Nothing here trusts what came. Every part is one that the protocol names, of the type and size that
it may have; what is left is judged by aggregator and roll call.
"""

import numpy as np
from nvflare.apis.dxo import DataKind
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel

from vltune.flare.allow_list import HANDSHAKE_KEYS, SITE_FACTS, SITE_METRICS
from vltune.flare.exchange import (
    MAX_SHARED_VALUES,
    META_EXAMPLES,
    META_HANDSHAKE,
    META_HISTOGRAMS,
    PAYLOAD_KEY,
    ExchangeError,
    is_number,
    to_tensors,
)
from vltune.histograms import ScoreHistograms
from vltune.parameters import LocalUpdate, spec_of
from vltune.participant import Evaluation, Handshake

MAX_HISTOGRAM_VALUES = 2**24
MAX_EXAMPLES = 10**9
MAX_FACT = 8192
"""Characters."""
_KINDS = (DataKind.WEIGHTS, DataKind.WEIGHT_DIFF, DataKind.METRICS)


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
