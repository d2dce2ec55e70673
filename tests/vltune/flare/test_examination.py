"""The doctor in the job's first task, and what a job without code may name."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.signal import Signal

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "algorithms")]

from answer_sites import make_job, write_site
from tiny_florence import write_tiny_florence

from vltune.code_identity import code_files, code_hash
from vltune.doctor_findings import Finding
from vltune.doctor_job import VERSIONS_FILE
from vltune.doctor_versions import installed_versions
from vltune.flare.examination import ForeignCodeError, check_builder, describe_finding
from vltune.flare.exchange import task_message
from vltune.flare.executor import JOB_FILE, ParticipantExecutor
from vltune.flare.failure import HEADER_ERROR
from vltune.flare.run_log import STATE_FILE
from vltune_lab.jobs.in_process import (
    JOB_ID,
    Engine,
    LocalSite,
    make_context,
    make_workspace,
    run_in_process,
)

BUILDER = "vltune.algorithms.fedvlm.build_participant"


def started(folder: Path, job: dict[str, Any], made_with: dict[str, Any]) -> LocalSite:
    """Site-1 with a job that was exported with `made_with`."""
    workspace = make_workspace(folder, "site-1")
    config = Path(workspace.get_app_config_dir(JOB_ID))
    (config / JOB_FILE).write_text(json.dumps(job))
    (config / VERSIONS_FILE).write_text(json.dumps(made_with))
    executor = ParticipantExecutor(BUILDER, stream_metrics=False, examine=True)
    return LocalSite("site-1", executor, make_context(Engine(workspace), "site-1"))


@pytest.mark.slow
def test_a_site_that_the_doctor_refuses_is_left_out_and_the_others_train(tmp_path: Path) -> None:
    weights = write_tiny_florence(tmp_path / "model")
    for name in ("site-1", "site-2", "site-3"):
        write_site(tmp_path, name)
    bad = tmp_path / "site-2" / "vltune_site.yaml"
    bad.write_text(bad.read_text() + "device: cuda:77\n")
    job = make_job(weights, federation={"rounds": 1, "min_sites": 2, "metric": "accuracy"})
    files = tmp_path / "{site}" / "vltune_site.yaml"
    names = ("site-1", "site-2", "site-3")
    server = run_in_process(job, names, tmp_path / "run", site_files=files, examine=True)
    state = json.loads((server / STATE_FILE).read_text())
    assert set(state["sites"]) == {"site-1", "site-3"}
    assert set(state["left_out"]) == {"site-2"}
    reason = state["left_out"]["site-2"]
    assert "DoctorError: " in reason
    assert "device: " in reason
    assert "vltune_site.yaml" in reason  # the cure; where the file is does not leave the site
    assert str(tmp_path) not in (server / STATE_FILE).read_text()


@pytest.mark.slow
def test_a_site_with_other_code_says_which_modules(tmp_path: Path) -> None:
    weights = write_tiny_florence(tmp_path / "model")
    site_file = write_site(tmp_path, "site-1")
    files = code_files()
    made_with = {
        "versions": installed_versions(),
        "code": "0" * 16,
        "files": files | {"training": "0" * 8},
    }
    site = started(tmp_path / "flare", make_job(weights) | {"num_rounds": 1}, made_with)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("VLTUNE_SITE_CONFIG", str(site_file / "vltune_site.yaml"))
        reply = site.ask("prepare", task_message("run", 2, None, 0, 1), Signal())
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    reason = reply.get_header(HEADER_ERROR)
    assert reason.startswith(f"DoctorError: code: {code_hash()} (expected: {'0' * 16})")
    assert "training changed" in reason


@pytest.mark.parametrize(
    ("dotted", "meta", "brings_code", "is_refused"),
    [
        ("os.system", {"byoc": False}, False, True),
        ("vltunes.evil", {}, False, True),
        ("os.system", {"byoc": True}, True, False),  # whoever may bring code needs no trick
        (BUILDER, {}, False, False),
        ("linear_site.build_participant", None, False, False),  # not submitted: in one process
    ],
)
def test_a_job_without_code_names_only_our_methods(
    tmp_path: Path, dotted: str, meta: dict[str, Any] | None, brings_code: bool, is_refused: bool
) -> None:
    context = make_context(Engine(make_workspace(tmp_path / "site", "site-1")), "site-1")
    if meta is not None:
        context.set_prop(FLContextKey.JOB_META, meta, private=True, sticky=True)
    app = tmp_path / "app"
    (app / "custom" if brings_code else app).mkdir(parents=True)
    if not is_refused:
        check_builder(dotted, app, context)
        return
    with pytest.raises(ForeignCodeError, match=dotted):
        check_builder(dotted, app, context)


def test_a_finding_is_told_without_its_private_part() -> None:
    finding = Finding("disk", "fail", "needs 2 GB", "less", "Free space.", "/mnt/secret is full")
    assert describe_finding(finding) == "disk: needs 2 GB (expected: less). Free space"
    assert describe_finding(Finding("device", "ok", "cpu")) == "device: cpu"
