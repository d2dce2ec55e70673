import io
import json

from rich.console import Console

from vltune.doctor import Report
from vltune.doctor_findings import Finding, failed, to_public, worst
from vltune.doctor_table import print_report

GOOD = Finding("device", "ok", "cpu", private="4 cores")
BAD = failed("data", ValueError("/data/[patient]/7.png: gone"), "Put it back.")


def test_worst() -> None:
    assert worst([]) == "ok"
    assert worst([GOOD, Finding("a", "warn", "")]) == "warn"
    assert worst([Finding("a", "warn", ""), BAD, GOOD]) == "fail"


def test_what_is_private_needs_to_be_asked_for() -> None:
    assert "private" not in to_public(BAD)
    report = Report("hospital-a", (GOOD, BAD))
    assert "patient" not in json.dumps(report.to_mapping())
    private = report.to_mapping(private=True)["private"]
    assert private == {"device": "4 cores", "data": "/data/[patient]/7.png: gone"}


def test_table_shows_the_site_everything_that_is_red() -> None:
    stream = io.StringIO()
    print_report(Report("hospital-a", (GOOD, BAD)), Console(file=stream, width=80))
    output = stream.getvalue()
    for words in ("site hospital-a: fail", "device", "Put it back.", "/data/[patient]/7.png"):
        assert words in output
    assert "4 cores" not in output  # of what is green, only the table
