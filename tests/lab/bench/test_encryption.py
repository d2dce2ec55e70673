"""A weighted mean through FLARE's own filters, and who could read it on the way."""

from pathlib import Path

import pytest
import tenseal
import torch
from nvflare.apis.dxo import from_shareable
from nvflare.fuel.utils import fobs

from vltune.robust_rules import weighted_mean
from vltune_lab.bench.encryption import (
    CLIENT_FILE,
    SERVER_FILE,
    encrypted_round,
    make_context,
    message_of,
    run_encryption,
    start_encryptor,
    write_contexts,
)

UPDATES = [
    {"a": torch.tensor([[1.0, -2.0, 3.0]]), "b": torch.tensor(0.5)},
    {"a": torch.tensor([[5.0, 2.0, 1.0]]), "b": torch.tensor(-0.5)},
]
COUNTS = [1, 3]


def test_the_decrypted_mean_is_the_plain_one_in_its_own_shapes(tmp_path: Path) -> None:
    """(1 + 15) / 4 = 4, (-2 + 6) / 4 = 1, (3 + 3) / 4 = 1.5; (0.5 - 1.5) / 4 = -0.25."""
    result = encrypted_round(UPDATES, COUNTS, tmp_path)
    torch.testing.assert_close(result.mean["a"], torch.tensor([[4.0, 1.0, 1.5]]), rtol=0, atol=1e-5)
    torch.testing.assert_close(result.mean["b"], torch.tensor(-0.25), rtol=0, atol=1e-5)
    plain = weighted_mean(UPDATES, COUNTS)
    assert all(result.mean[name].shape == value.shape for name, value in plain.items())
    assert result.bytes_up > 100_000


def test_neither_the_message_nor_the_server_has_the_secret_key(tmp_path: Path) -> None:
    write_contexts(tmp_path)
    assert tenseal.context_from((tmp_path / CLIENT_FILE).read_bytes()).is_private()
    server = tenseal.context_from((tmp_path / SERVER_FILE).read_bytes())
    assert not server.is_private()
    message = message_of(UPDATES[0], 1)
    encrypted = start_encryptor(tmp_path).process(message, make_context("site-0"))
    raw = fobs.dumps(encrypted)
    vector = from_shareable(fobs.loads(raw)).data["a"]
    assert not vector.context().is_private()
    with pytest.raises(ValueError, match="secret_key"):
        vector.decrypt()
    assert UPDATES[0]["a"].numpy().tobytes() not in raw


def test_the_benchmark_compares_the_same_mean() -> None:
    rows = {row["name"]: row for row in run_encryption(quick=True)}
    assert len(rows) == 5
    assert all(row["max_abs_error"] < 1e-5 for row in rows.values())
    assert rows["bytes up, a site"]["ratio"] > 10
