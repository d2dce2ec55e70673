"""What NVIDIA FLARE will ask of a site: ports, privacy and authorization policies, timeouts."""

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vltune.doctor_findings import Finding, failed
from vltune.parameters import SharedSpec

CONNECT_SECONDS = 5.0
TRANSFER_SHARE = 0.5
"""A round also trains: transfers that take more of its timeout than this are a warning."""
_FLOAT_BYTES = 4


def payload_bytes(spec: SharedSpec) -> int:
    """Bytes of the shared tensors as fp32; FLARE's headers add about 2 kB."""
    count = 0
    for shape in spec.values():
        numbers = 1
        for length in shape:
            numbers *= length
        count += numbers
    return _FLOAT_BYTES * count


def check_timeouts(
    up: int, down: int, link_mbps: float | None, round_timeout: float | None
) -> Finding:
    """Do both transfers of a round fit into its timeout?

    seconds = 8 * (up + down) / (10^6 * link_mbps): the global model comes, the update goes.

    Args:
        up: Bytes of an update.
        down: Bytes of the global model, at most.
        link_mbps: Megabits a second of the site's link; None: not known.
        round_timeout: federation.round_timeout_seconds; None: the export does not say.
    """
    name, size = "timeouts", f"{down / 1e6:.2f} MB down and {up / 1e6:.2f} MB up a round"
    if link_mbps is None:
        return Finding(name, "ok", f"{size}; link speed not given")
    seconds = 8 * (up + down) / (1e6 * link_mbps)
    value = f"{size}, {seconds:.1f} s on the link"
    if round_timeout is None:
        return Finding(name, "warn", value, "", "The export does not say round_timeout_seconds.")
    expected = f"at most {TRANSFER_SHARE:.0%} of round_timeout_seconds {round_timeout:g}"
    cure = (
        f"Export the job with federation.round_timeout_seconds={seconds / TRANSFER_SHARE:.0f} or "
        "more, plus the time to train; or lower the rank."
    )
    if seconds >= round_timeout:
        return Finding(name, "fail", value, expected, cure)
    if seconds > TRANSFER_SHARE * round_timeout:
        return Finding(name, "warn", value, expected, cure)
    return Finding(name, "ok", value, expected)


def check_ports(kit: Path) -> list[Finding]:
    """Open and close a connection to each server that the startup kit names; nothing is sent."""
    path = kit / "startup" / "fed_client.json"
    try:
        servers = json.loads(path.read_text(encoding="utf-8"))["servers"]
        targets = [str(server["service"]["target"]) for server in servers]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [failed("ports", error, "Give the site's folder with startup/fed_client.json.")]
    return [_connect(target) for target in targets]


def _connect(target: str) -> Finding:
    host, _, port = target.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS):
            pass
    except (OSError, ValueError, OverflowError) as error:
        cure = "Start the server, or open outgoing TCP to it in the site's firewall."
        return Finding("ports", "fail", "no connection", "server", cure, f"{target}: {error}")
    return Finding("ports", "ok", "server answers", private=target)


def check_privacy(local: Path, scope: str | None) -> Finding:
    """Will FLARE's privacy policy of this site let the job in, and does it change its results?

    Args:
        local: The FLARE site's `local` folder.
        scope: That the job asks for, or None.
    """
    path = local / "privacy.json"
    if not path.is_file():
        return Finding("privacy policy", "ok", "none: the job's own filter decides")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        scopes = {item["name"]: item for item in content.get("scopes", [])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return failed("privacy policy", error, "Correct local/privacy.json.")
    chosen = scope or content.get("default_scope")
    if scopes and chosen not in scopes:
        cure = "Give local/privacy.json a default_scope that it defines, or the job a scope."
        return Finding("privacy policy", "fail", f"scope {chosen}", "a known scope", cure)
    filters = [
        str(item.get("name") or item.get("path"))
        for key in ("task_result_filters", "task_data_filters")
        for item in scopes.get(chosen, {}).get(key, [])
    ]
    if filters:
        cure = "These run beside the job's own filter; see that they keep shapes and keys."
        return Finding("privacy policy", "warn", f"filters: {', '.join(filters)}", "", cure)
    return Finding("privacy policy", "ok", f"scope {chosen}, no filters")


def check_authorization(local: Path, brings_code: bool) -> Finding:
    """May anybody submit this job here, and may a job bring code if this one does?"""
    for name in ("authorization.json", "authorization.json.default"):
        if (local / name).is_file():
            break
    else:
        return Finding(
            "authorization", "warn", "no policy", "authorization.json", "Restore the startup kit."
        )
    try:
        permissions = json.loads((local / name).read_text(encoding="utf-8"))["permissions"]
        roles = sorted(role for role in permissions if _may(permissions[role], "submit_job"))
        code = [role for role in roles if _may(permissions[role], "byoc")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return failed("authorization", error, f"Correct local/{name}.")
    if not roles:
        cure = "Let a role submit jobs."
        return Finding("authorization", "fail", "nobody may submit a job", "a role", cure)
    if brings_code and not code:
        cure = "Allow byoc to a role that submits, or export a job without code."
        return Finding(
            "authorization", "fail", "jobs may not bring code", "byoc, as this job does", cure
        )
    value = f"submit: {', '.join(roles)}; code: {', '.join(code) or 'nobody'}"
    return Finding("authorization", "ok", value)


def _may(rights: str | Mapping[str, Any], right: str) -> bool:
    """FLARE: one word for all rights, or a word for each; what is not named is refused."""
    said = rights if isinstance(rights, str) else rights.get(right, "none")
    return said != "none"
