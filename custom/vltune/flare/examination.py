"""Before a site's first task: the doctor, and what a job without code may name."""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext

from vltune.doctor_findings import DoctorError, Finding
from vltune.site_config import AnySiteConfig

log = logging.getLogger(__name__)

OWN_CODE = "vltune."


class ForeignCodeError(ValueError):
    """A job without code names a function that is not ours."""


def check_builder(dotted: str, app: Path, fl_ctx: FLContext) -> None:
    """Let a job that brings no code name only a method of ours.

    FLARE's list of classes does not see this name: it is an argument. Outside a submitted job (in
    one process) nothing is asked.

    Args:
        dotted: Path of the method's builder.
        app: The job's app at this site.
        fl_ctx: Says whether the job was submitted.

    Raises:
        ForeignCodeError: It is somebody else's.
    """
    is_submitted = isinstance(fl_ctx.get_prop(FLContextKey.JOB_META), dict)
    if is_submitted and not (app / "custom").is_dir() and not dotted.startswith(OWN_CODE):
        raise ForeignCodeError(
            f"the job brings no code and names {dotted!r} as its method; expected one of vltune. "
            "Export it with its code."
        )


def examine_site(app: Path, participant: str, site: AnySiteConfig, site_name: str) -> None:
    """Make the doctor's checks of this site; the log has all of them.

    Args:
        app: The job's app at this site.
        participant: Dotted path of the method's builder.
        site: The site's own file.
        site_name: Its FLARE name.

    Raises:
        DoctorError: A check failed; the message holds nothing private.
    """
    # Behind this is peft, for which the server should not wait.
    from vltune.doctor import Options, examine
    from vltune.doctor_job import read_app

    exported = replace(read_app(app, participant), folder=app)  # what lies beside it still changes
    try:
        with torch.random.fork_rng(devices=[]):
            report = examine(exported, site, site_name, Options(is_running=True))
    except Exception:
        log.exception("the doctor did not come to an end; the first task is tried without it")
        return
    for finding in report.findings:
        level = logging.INFO if finding.status == "ok" else logging.WARNING
        private = f" [{finding.private}]" if finding.private else ""
        log.log(level, "doctor: %s: %s%s", finding.status, describe_finding(finding), private)
    failures = [finding for finding in report.findings if finding.status == "fail"]
    if failures:
        raise DoctorError("; ".join(describe_finding(finding) for finding in failures))


def describe_finding(finding: Finding) -> str:
    """One line of what may leave the site: name, value, what was expected, cure."""
    expected = f" (expected: {finding.expected})" if finding.expected else ""
    cure = f". {finding.cure}" if finding.cure else ""
    return f"{finding.name}: {finding.value}{expected}{cure}".rstrip(".")
