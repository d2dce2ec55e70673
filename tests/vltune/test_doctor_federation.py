import json
import socket
from pathlib import Path
from typing import Any

import pytest

from vltune.doctor_federation import (
    check_authorization,
    check_ports,
    check_privacy,
    check_timeouts,
    payload_bytes,
)

MEGABYTE = 1_000_000


def test_payload_by_hand() -> None:
    assert payload_bytes({"a": (3, 5), "b": (), "c": (7,)}) == 4 * (15 + 1 + 7)


@pytest.mark.parametrize(
    ("mbps", "timeout", "status"),
    # 1 MB there and 1 MB back are 16 megabit.
    [(16.0, 10.0, "ok"), (16.0, 1.5, "warn"), (16.0, 1.0, "fail"), (16.0, None, "warn")],
)
def test_timeouts_by_hand(mbps: float, timeout: float | None, status: str) -> None:
    finding = check_timeouts(MEGABYTE, MEGABYTE, mbps, timeout)
    assert finding.status == status
    assert "1.0 s" in finding.value


def test_link_speed_unknown() -> None:
    finding = check_timeouts(MEGABYTE, MEGABYTE, None, 1.0)
    assert (finding.status, "1.00 MB up" in finding.value) == ("ok", True)


def write_kit(folder: Path, target: str) -> Path:
    (folder / "startup").mkdir(parents=True)
    content = {"servers": [{"name": "project", "service": {"target": target}}]}
    (folder / "startup" / "fed_client.json").write_text(json.dumps(content))
    return folder


def test_server_that_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        target = f"127.0.0.1:{server.getsockname()[1]}"
        (finding,) = check_ports(write_kit(tmp_path / "open", target))
    assert (finding.status, finding.private) == ("ok", target)
    (closed,) = check_ports(write_kit(tmp_path / "closed", target))
    assert closed.status == "fail"
    assert target not in closed.value + closed.expected + closed.cure


@pytest.mark.parametrize("target", ["127.0.0.1", "127.0.0.1:what", "127.0.0.1:70000"])
def test_wrong_target(tmp_path: Path, target: str) -> None:
    assert [finding.status for finding in check_ports(write_kit(tmp_path, target))] == ["fail"]


def test_no_kit(tmp_path: Path) -> None:
    assert [finding.status for finding in check_ports(tmp_path)] == ["fail"]


def scope(**filters: Any) -> dict[str, Any]:
    return {"scopes": [{"name": "public", **filters}], "default_scope": "public"}


@pytest.mark.parametrize(
    ("content", "asked", "status"),
    [
        (scope(), None, "ok"),
        (scope(), "public", "ok"),
        (scope(), "private", "fail"),
        (scope() | {"default_scope": None}, None, "fail"),
        (scope(task_result_filters=[{"name": "PercentilePrivacy"}]), None, "warn"),
        ({}, None, "ok"),
        ([1], None, "fail"),
    ],
)
def test_privacy_policy(tmp_path: Path, content: Any, asked: str | None, status: str) -> None:
    (tmp_path / "privacy.json").write_text(json.dumps(content))
    assert check_privacy(tmp_path, asked).status == status


def test_privacy_without_a_policy_or_json(tmp_path: Path) -> None:
    assert check_privacy(tmp_path, "any").status == "ok"
    (tmp_path / "privacy.json").write_text("{")
    assert check_privacy(tmp_path, None).status == "fail"


LEAD = {"submit_job": "any", "byoc": "any"}


@pytest.mark.parametrize(
    ("permissions", "brings_code", "status"),
    [
        ({"project_admin": "any", "member": {"view": "any"}}, True, "ok"),
        ({"lead": LEAD}, True, "ok"),
        ({"lead": LEAD | {"byoc": "none"}}, True, "fail"),
        ({"lead": {"submit_job": "any"}}, True, "fail"),  # what is not named is refused
        ({"lead": LEAD | {"byoc": "none"}}, False, "ok"),
        ({"member": {"view": "any"}}, False, "fail"),
        ([], False, "fail"),
    ],
)
def test_authorization(tmp_path: Path, permissions: Any, brings_code: bool, status: str) -> None:
    content = {"format_version": "1.0", "permissions": permissions}
    (tmp_path / "authorization.json.default").write_text(json.dumps(content))
    assert check_authorization(tmp_path, brings_code).status == status


def test_the_sites_own_policy_comes_first(tmp_path: Path) -> None:
    assert check_authorization(tmp_path, True).status == "warn"
    for name, rights in (("authorization.json.default", "any"), ("authorization.json", "none")):
        (tmp_path / name).write_text(json.dumps({"permissions": {"lead": rights}}))
    assert check_authorization(tmp_path, True).status == "fail"
