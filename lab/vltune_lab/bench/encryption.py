"""Benchmark `encryption`: one round's weighted mean under FLARE's homomorphic encryption (CKKS).

Real messages of ours go through FLARE's own parts: HEModelEncryptor at each site, fobs,
HEInTimeAccumulateWeightedAggregator at a server without the secret key, fobs, HEModelDecryptor at a
site. The tensors have FedMPT's shapes and sizes of values as in training. Compared with the plain
mean of `robust_rules`. docs/homomorphic_encryption.md says what jobs cannot do with it yet.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tenseal
import torch
from nvflare.apis.dxo import DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_opt.he.intime_accumulate_model_aggregator import (
    HEInTimeAccumulateWeightedAggregator,
)
from nvflare.app_opt.he.model_decryptor import HEModelDecryptor
from nvflare.app_opt.he.model_encryptor import HEModelEncryptor
from nvflare.fuel.sec.security_content_service import SecurityContentManager, SecurityContentService
from nvflare.fuel.utils import fobs
from torch import Tensor

from vltune.flare.exchange import payload_bytes, update_reply
from vltune.parameters import LocalUpdate
from vltune.robust_rules import weighted_mean
from vltune.seed import derive_seed, torch_generator

# FLARE's own values in `nvflare provision` (lighter/impl/he.py).
POLY_MODULUS_DEGREE, COEFF_MOD_BIT_SIZES, SCALE_BITS = 8192, (60, 40, 40), 40
CLIENT_FILE, SERVER_FILE = "client_context.tenseal", "server_context.tenseal"
# FedMPT on the embedded world: K = 5 conditions, D = 192, r = 32, W = 128, 4 context tokens.
FEDMPT_SHAPES: dict[str, tuple[int, ...]] = {
    "adapters.down": (5, 192, 32),
    "adapters.up": (5, 32, 192),
    "gate.down": (192, 8),
    "gate.up": (8, 5),
    "head_bias": (),
    "head_scale": (),
    "prompts.ctx_class": (4, 128),
    "prompts.ctx_condition": (5, 4, 128),
}
SITES = 4
ROUND = 3

T = TypeVar("T")


class EncryptedRound(NamedTuple):
    """One round under encryption.

    Attributes:
        mean: What a site decrypts, in its own shapes.
        seconds: Of one site's encryption, of the server's sum over all sites, of one decryption.
        bytes_up: Of one site's update.
        bytes_down: Of the mean.
    """

    mean: dict[str, Tensor]
    seconds: tuple[float, float, float]
    bytes_up: int
    bytes_down: int


def run_encryption(quick: bool) -> list[dict[str, Any]]:
    """Rows of a benchmark file: bytes and seconds, plain against encrypted."""
    shapes = {"head_scale": (), "gate.up": (8, 5)} if quick else FEDMPT_SHAPES
    updates = [_update(shapes, site) for site in range(SITES)]
    counts = [1000 + 10 * site for site in range(SITES)]
    payload_bytes(message_of(updates[0], counts[0]))  # the first time FLARE loads its parts
    began = time.perf_counter()
    plain_bytes = payload_bytes(message_of(updates[0], counts[0]))
    serialised = time.perf_counter() - began
    began = time.perf_counter()
    plain = weighted_mean(updates, counts)
    added = time.perf_counter() - began
    with tempfile.TemporaryDirectory(prefix="vltune-bench-") as folder:
        encrypted = encrypted_round(updates, counts, Path(folder))
    error = max(float((plain[name] - encrypted.mean[name]).abs().max()) for name in plain)
    encrypt, add, decrypt = encrypted.seconds
    return [
        _row("bytes up, a site", plain_bytes, encrypted.bytes_up, "bytes", error),
        _row("bytes down, a site", plain_bytes, encrypted.bytes_down, "bytes", error),
        _row("encrypt and serialise, a site", serialised, encrypt, "s", error),
        _row(f"mean of {SITES} sites, server", added, add, "s", error),
        _row("read and decrypt, a site", serialised, decrypt, "s", error),
    ]


def encrypted_round(
    updates: Sequence[Mapping[str, Tensor]], counts: Sequence[int], folder: Path
) -> EncryptedRound:
    """Weighted mean of updates through FLARE's filters and aggregator.

    Args:
        updates: One a site, of the same names and shapes.
        counts: Weights.
        folder: For the key files, as `nvflare provision` writes them.
    """
    write_contexts(folder)
    encryptor = start_encryptor(folder)
    decryptor = _started(HEModelDecryptor(CLIENT_FILE), folder)
    server = HEInTimeAccumulateWeightedAggregator(expected_data_kind=DataKind.WEIGHTS)
    context = make_context("server")
    server.handle_event(EventType.START_RUN, context)
    encrypt_seconds, sizes, add_seconds = [], [], 0.0
    for site, (tensors, count) in enumerate(zip(updates, counts, strict=True)):
        message = message_of(tensors, count)
        site_context = make_context(f"site-{site}")
        raw, seconds = _timed(lambda m=message, c=site_context: fobs.dumps(encryptor.process(m, c)))
        encrypt_seconds.append(seconds)
        sizes.append(len(raw))
        received: Shareable = fobs.loads(raw)
        received.set_peer_props({ReservedKey.IDENTITY_NAME: f"site-{site}"})
        received.add_cookie(AppConstants.CONTRIBUTION_ROUND, ROUND)
        is_accepted, seconds = _timed(lambda r=received: server.accept(r, context))
        if not is_accepted:
            raise ValueError(f"FLARE's aggregator refused site-{site}")
        add_seconds += seconds
    mean, seconds = _timed(lambda: server.aggregate(context))
    dxo = from_shareable(mean)
    dxo.set_meta_prop(MetaKey.PROCESSED_ALGORITHM, "CKKS")
    down = fobs.dumps(dxo.to_shareable())
    restored, decrypt_seconds = _timed(
        lambda: decryptor.process(fobs.loads(down), make_context("site-0"))
    )
    flat = from_shareable(restored).data
    tensors = {
        # FLARE flattens what it encrypts, and decrypts to lists.
        name: torch.tensor(np.asarray(flat[name]), dtype=torch.float32).reshape(value.shape)
        for name, value in updates[0].items()
    }
    times = (min(encrypt_seconds), add_seconds + seconds, decrypt_seconds)
    return EncryptedRound(tensors, times, max(sizes), len(down))


def write_contexts(folder: Path) -> None:
    """Write the key files as `nvflare provision` does; the server's holds no secret."""
    keys = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS,
        poly_modulus_degree=POLY_MODULUS_DEGREE,
        coeff_mod_bit_sizes=list(COEFF_MOD_BIT_SIZES),
        encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,
    )
    keys.generate_relin_keys()
    keys.global_scale = 2**SCALE_BITS
    for name, is_site in ((CLIENT_FILE, True), (SERVER_FILE, False)):
        raw = keys.serialize(
            save_public_key=is_site,
            save_secret_key=is_site,
            save_galois_keys=False,
            save_relin_keys=True,
        )
        (folder / name).write_bytes(raw)


def message_of(tensors: Mapping[str, Tensor], count: int) -> Shareable:
    """Our answer to `train`, with the weight where FLARE's filter looks for it."""
    message = update_reply(LocalUpdate(dict(tensors), count, {"loss": 0.5}), ROUND)
    dxo = from_shareable(message)
    dxo.set_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND, count)
    return dxo.update_shareable(message)


def make_context(name: str) -> FLContext:
    """A FLARE context of one round with a peer, not in secure mode: the keys are not signed."""
    context, peer = FLContext(), FLContext()
    for one in (context, peer):
        one.set_prop(ReservedKey.IDENTITY_NAME, name, private=False, sticky=False)
    engine = SimpleNamespace(fire_event=lambda *_: None)
    context.set_prop(ReservedKey.ENGINE, engine, private=True, sticky=False)
    context.set_prop(FLContextKey.SECURE_MODE, False, private=True, sticky=False)
    context.set_prop(AppConstants.CURRENT_ROUND, ROUND, private=True, sticky=False)
    context.set_peer_context(peer)
    return context


def start_encryptor(folder: Path) -> HEModelEncryptor:
    """FLARE's filter of a site with the keys of `folder`."""
    return _started(HEModelEncryptor(CLIENT_FILE), folder)


def _started(component: Any, folder: Path) -> Any:
    """Start a filter, which reads its keys from the folder."""
    before = SecurityContentService.security_content_manager
    SecurityContentService.security_content_manager = SecurityContentManager(str(folder))
    try:
        component.handle_event(EventType.START_RUN, make_context("site"))
    finally:
        SecurityContentService.security_content_manager = before
    return component


def _update(shapes: Mapping[str, tuple[int, ...]], site: int) -> dict[str, Tensor]:
    generator = torch_generator(derive_seed(7, f"site-{site}", 0, "encryption"))
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    result = call()
    return result, time.perf_counter() - began


def _row(name: str, plain: float, encrypted: float, unit: str, error: float) -> dict[str, Any]:
    return {
        "name": name,
        "baseline": float(plain),
        "ours": float(encrypted),
        "ratio": encrypted / plain,
        "unit": unit,
        "max_abs_error": error,
    }
