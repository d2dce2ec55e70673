"""What `vltune doctor` says of one point, and what of it may leave the site."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["ok", "warn", "fail"]
HASH_SHOWN = 12


class DoctorError(ValueError):
    """The doctor cannot begin; the message names the file and the cure."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    `value`, `expected` and `cure` hold no path, no file name, no text of a record and no figure of
    the machine: they may be shown to the server. Whatever else helps the site's own people stands
    in `private` and never leaves the site.

    Attributes:
        name: What was checked.
        status: ok; warn: the job can run, but look at it; fail: it cannot.
        value: What was found.
        expected: What the job needs; empty where anything is right.
        cure: What to do; empty where nothing is to be done.
        private: For the site's own eyes: paths, messages of errors, free space.
    """

    name: str
    status: Status
    value: str
    expected: str = ""
    cure: str = ""
    private: str = ""


def failed(name: str, error: Exception, cure: str, *, expected: str = "") -> Finding:
    """A check that ended with an error: its kind is public, its message is not."""
    return Finding(name, "fail", type(error).__name__, expected, cure, str(error))


def worst(findings: Sequence[Finding]) -> Status:
    """Fail before warn before ok; ok where there is nothing."""
    found = {finding.status for finding in findings}
    if "fail" in found:
        return "fail"
    return "warn" if "warn" in found else "ok"


def to_public(finding: Finding) -> dict[str, Any]:
    """What of a finding may be sent to a server: all but `private`."""
    return {
        "name": finding.name,
        "status": finding.status,
        "value": finding.value,
        "expected": finding.expected,
        "cure": finding.cure,
    }
