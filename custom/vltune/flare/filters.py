"""The site's gate: a result leaves only if every part of it is on the allow-list.

FLARE's own filters return a payload untouched when they do not understand it. This one blocks
whatever it does not understand: the server then gets a return code and a reason, and nothing else.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from nvflare.apis.dxo import DataKind, MetaKey
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from nvflare.app_common.app_constant import AppConstants

from vltune.flare.allow_list import HANDSHAKE_KEYS, SITE_FACTS, SITE_HISTOGRAMS, SITE_METRICS
from vltune.flare.exchange import (
    META_EXAMPLES,
    META_HANDSHAKE,
    META_HISTOGRAMS,
    META_METRICS,
    PAYLOAD_KEY,
    is_number,
    payload_bytes,
)
from vltune.flare.failure import HEADER_ERROR, error_reply
from vltune.parameters import SharedSpec

SPEC_PROPERTY = "vltune_shared_spec"
"""Where the executor leaves names and shapes of the participant's shared tensors, site-private."""

log = logging.getLogger(__name__)

_HEADERS = frozenset(
    {
        ReservedHeaderKey.CONTENT_TYPE,
        ReservedHeaderKey.RC,
        AppConstants.START_ROUND,
        AppConstants.CURRENT_ROUND,
        AppConstants.NUM_ROUNDS,
    }
)
_META = frozenset(
    {
        META_METRICS,
        META_EXAMPLES,
        META_HISTOGRAMS,
        META_HANDSHAKE,
        MetaKey.FILTER_HISTORY,  # names of FLARE filters that ran before
    }
)
_MAX_TEXT = 8192


class BlockedError(ValueError):
    """A result held something that is not on the allow-list; the text is safe to send."""


class SharedOnlyFilter(Filter):
    """Lets shared tensors, documented scalars and score histograms pass; blocks the rest.

    Args:
        shared_keys: Names that may leave. Empty takes those of the method's shared set; a site that
            wants its own list names this class in its privacy.json and gives them.
    """

    def __init__(self, shared_keys: list[str] | None = None) -> None:
        super().__init__()
        self.shared_keys = shared_keys

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Return the result unchanged, or an answer without content."""
        try:
            if isinstance(shareable, Shareable) and shareable.get_return_code() != ReturnCode.OK:
                reason = str(shareable.get_header(HEADER_ERROR, ""))
                return error_reply(str(shareable.get_return_code()), reason)
            check_result(shareable, fl_ctx.get_prop(SPEC_PROPERTY), self.shared_keys)
            size = payload_bytes(shareable)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong here, nothing may leave
            known = isinstance(error, BlockedError)
            log.error("blocked: nothing left this site: %s", error if known else type(error))
            reason = str(error) if known else f"the filter failed with {type(error).__name__}"
            return error_reply(
                ReturnCode.TASK_RESULT_FILTER_ERROR, f"blocked by the site: {reason}"
            )
        log.info("%d bytes leave this site", size)
        return shareable


def check_result(shareable: object, spec: object, shared_keys: Sequence[str] | None = None) -> None:
    """Refuse a result that holds anything but what may leave.

    The executor asks too, so that a job without the filter leaks no more than one with it.

    Args:
        shareable: The result of a task that went well.
        spec: Names and shapes of the method's shared tensors.
        shared_keys: The site's own list, if it has one.

    Raises:
        BlockedError: The text names no part that is not on the list, so that it may leave.
    """
    if not isinstance(shareable, Shareable):
        raise BlockedError(f"the result is a {type(shareable).__name__}")
    if not isinstance(spec, dict) or not spec:
        raise BlockedError("the set of shared tensors is not known")
    if shared_keys is not None and not set(spec) <= set(shared_keys):
        raise BlockedError("the method shares tensors that the site's own list does not have")
    _only(shareable, {ReservedHeaderKey.HEADERS, PAYLOAD_KEY}, "message")
    _only(shareable.get(ReservedHeaderKey.HEADERS, {}), _HEADERS, "header")
    content = shareable.get(PAYLOAD_KEY)
    if not isinstance(content, dict) or set(content) != {"kind", "data", "meta"}:
        raise BlockedError("the result holds no FLARE data exchange object")
    meta = _mapping(content["meta"], "meta")
    if meta.get(MetaKey.PROCESSED_ALGORITHM):
        raise BlockedError(
            "the tensors were encrypted or masked by another filter, but this server adds plain "
            "tensors; take that filter away"
        )
    _only(meta, _META, "meta key")
    if content["kind"] == DataKind.WEIGHTS:
        _check_tensors(_mapping(content["data"], "data"), spec)
    elif content["kind"] == DataKind.METRICS:
        _check_metrics(_mapping(content["data"], "metrics"))
    else:
        raise BlockedError("the result is neither tensors nor metrics")
    _check_meta(meta, spec)


def _is_short_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT


def _mapping(value: object, what: str) -> Mapping[Any, Any]:
    if not isinstance(value, dict):
        raise BlockedError(f"{what} is a {type(value).__name__}")
    return value


def _only(mapping: object, allowed: set[str] | frozenset[str], what: str) -> None:
    # Names that are not on the list are not repeated: they leave the site with the reason.
    extra = [key for key in _mapping(mapping, what) if key not in allowed]
    if extra:
        raise BlockedError(f"{len(extra)} {what}(s) not on the allow-list")


def _check_tensors(data: Mapping[Any, Any], spec: SharedSpec) -> None:
    _only(data, frozenset(spec), "tensor")
    missing = sorted(set(spec) - set(data))
    if missing:
        raise BlockedError(f"shared tensors are missing: {missing}")
    for name, value in data.items():
        if not isinstance(value, np.ndarray) or value.dtype != np.float32:
            raise BlockedError(f"{name} is not a float32 array")
        if value.shape != tuple(spec[name]):
            raise BlockedError(f"{name} has shape {value.shape}, expected {tuple(spec[name])}")


def _check_metrics(metrics: Mapping[Any, Any]) -> None:
    _only(metrics, SITE_METRICS, "metric")
    if not all(is_number(value) for value in metrics.values()):
        raise BlockedError("a metric is not a number")


def _check_meta(meta: Mapping[Any, Any], spec: SharedSpec) -> None:
    _check_metrics(_mapping(meta.get(META_METRICS, {}), "metrics"))
    examples = meta.get(META_EXAMPLES, 0)
    if not isinstance(examples, int):
        raise BlockedError("num_examples is not a whole number")
    histograms = _mapping(meta.get(META_HISTOGRAMS, {}), "histograms")
    _only(histograms, SITE_HISTOGRAMS, "histogram")
    for name, value in histograms.items():
        if not isinstance(value, np.ndarray) or value.dtype != np.int32 or value.ndim > 1:
            raise BlockedError(f"histogram {name} is not a flat int32 array")
    history = meta.get(MetaKey.FILTER_HISTORY, [])
    if not isinstance(history, list) or not all(_is_short_text(name) for name in history):
        raise BlockedError("the filter history is not a list of names")
    if META_HANDSHAKE in meta:
        _check_handshake(_mapping(meta[META_HANDSHAKE], "handshake"), spec)


def _check_handshake(handshake: Mapping[Any, Any], spec: SharedSpec) -> None:
    _only(handshake, HANDSHAKE_KEYS, "handshake key")
    shapes = {name: tuple(shape) for name, shape in _mapping(handshake["spec"], "spec").items()}
    if shapes != {name: tuple(shape) for name, shape in spec.items()}:
        raise BlockedError("the handshake describes other tensors")
    facts = _mapping(handshake["facts"], "facts")
    _only(facts, SITE_FACTS, "fact")
    texts = [handshake["initial_hash"], *facts.values()]
    if not all(_is_short_text(text) for text in texts):
        raise BlockedError("a fact is not a short text")
    counts = [handshake["num_examples"], handshake["num_validation"]]
    if not all(isinstance(count, int) for count in counts):
        raise BlockedError("a count is not a whole number")
