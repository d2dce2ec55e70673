import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from vltune.doctor_resources import (
    available_memory_bytes,
    check_clock,
    check_device,
    check_disk,
    check_memory,
)


@pytest.mark.parametrize(("available", "status"), [(1000, "ok"), (600, "warn"), (559, "fail")])
def test_memory_by_hand(available: int, status: str) -> None:
    # 100 frozen and 10 trained numbers: 4 x (100 + 4 x 10) = 560 bytes.
    finding = check_memory(100, 10, available)
    assert finding.status == status
    assert bool(finding.cure) == (status != "ok")


def test_memory_of_this_machine() -> None:
    available = available_memory_bytes()
    assert available is None or available > 10**6
    assert check_memory(1, 1, None).status == "warn"


@pytest.mark.parametrize(("quota", "status"), [(200, "ok"), (110, "warn"), (99, "fail")])
def test_disk_within_a_quota(tmp_path: Path, quota: int, status: str) -> None:
    assert check_disk(100, tmp_path / "not" / "yet", quota).status == status
    assert not (tmp_path / "not").exists()


def test_more_than_the_disk_has(tmp_path: Path) -> None:
    finding = check_disk(10**18, tmp_path)
    assert finding.status == "fail"
    assert str(tmp_path) in finding.private
    assert str(tmp_path) not in finding.value + finding.expected + finding.cure


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert check_disk(1, tmp_path / "file" / "below").status == "fail"


def test_device() -> None:
    assert check_device("cpu").status == "ok"
    assert check_device("cuda:99").status == "fail"


def test_clock_behind_the_job(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text("{}")
    assert [finding.status for finding in check_clock(tmp_path, None)] == ["ok"]
    later = time.time() + 1000
    os.utime(tmp_path / "meta.json", (later, later))
    (finding,) = check_clock(tmp_path, None)
    assert finding.status == "fail"
    assert "NTP" in finding.cure


def write_certificate(path: Path) -> datetime:
    """Valid for a day from now on; returns its beginning."""
    begin = datetime.now(UTC).replace(microsecond=0)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hospital-a")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name)
    builder = builder.public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(begin).not_valid_after(begin + timedelta(days=1))
    certificate = builder.sign(key, hashes.SHA256())
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return begin


@pytest.mark.parametrize(("days", "status"), [(-0.5, "fail"), (0.5, "ok"), (1.5, "fail")])
def test_certificate(tmp_path: Path, days: float, status: str) -> None:
    (tmp_path / "meta.json").write_text("{}")
    begin = write_certificate(tmp_path / "client.crt")
    now = (begin + timedelta(days=days)).timestamp()
    finding = check_clock(tmp_path, tmp_path / "client.crt", now)[-1]
    assert (finding.name, finding.status) == ("certificate", status)


def test_no_certificate(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text("{}")
    assert check_clock(tmp_path, tmp_path / "client.crt")[-1].status == "fail"
