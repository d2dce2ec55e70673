import json
from pathlib import Path
from typing import Any

import pytest

from vltune.config import ConfigError
from vltune.flare.federation import FederationError
from vltune.flare.persistor import read_adapter, round_file
from vltune_lab.jobs.in_process import run_in_process
from vltune_lab.jobs.launch import JOB_RECORD, Options, continue_run, main, site_names
from vltune_lab.jobs.resolve import resolve_job
from vltune_lab.report.summary import load_summary


def test_sites_are_a_number_or_names() -> None:
    assert site_names("") == ("site-1", "site-2", "site-3", "site-4")
    assert site_names("2") == ("site-1", "site-2")
    assert site_names("ward-a, ward-b") == ("ward-a", "ward-b")


@pytest.mark.parametrize("text", ["0", "a,,b", ","])
def test_wrong_sites_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--sites"):
        site_names(text)


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["--sites", "a,a"], "two sites have the same name: a"),
        (["--sites", "3"], "site site-3: no vltune_site.yaml"),
        (["--set", "federation.quorum=1"], "unknown key quorum"),
        (["--yaml", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--resume", "nowhere"], "nowhere: holds no job.json"),
        (["--env", "prod"], "no startup kit"),
    ],
)
def test_what_cannot_run_ends_with_its_cause(
    kind: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], cause: str
) -> None:
    assert main(kind(), [*arguments, "--out", str(tmp_path / "runs")]) == 1
    error = capsys.readouterr().err
    assert cause in error.replace("\n", " ")
    assert "Traceback" not in error


def test_poc_that_was_never_prepared(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("NVFLARE_POC_WORKSPACE", str(tmp_path / "nothing"))
    assert main(kind(), ["--env", "poc", "--out", str(tmp_path / "runs")]) == 1
    error = capsys.readouterr().err.replace("\n", " ")
    assert "no POC at" in error
    assert "nvflare poc prepare" in error


def test_one_file_for_many_sites_is_refused(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("VLTUNE_SITE_CONFIG", str(tmp_path / "data/site-1/vltune_site.yaml"))
    assert main(kind(), ["--sites", "2", "--out", str(tmp_path / "runs")]) == 1
    assert "would share one file" in capsys.readouterr().err.replace("\n", " ")


def test_an_existing_run_is_not_overwritten(kind: Any, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "runs" / "x").mkdir(parents=True)
    assert main(kind(), ["--out", str(tmp_path / "runs"), "--name", "x"]) == 1
    assert "exists. Choose another --name" in capsys.readouterr().err.replace("\n", " ")


def test_export_writes_the_job_and_stops(kind: Any, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "jobs"
    assert main(kind(), ["--export", "--export-dir", str(out), "--set", "seed=77"]) == 0
    job = json.loads((out / "linear/app/config/vltune_job.json").read_text())
    assert (job["seed"], job["method"]) == (77, "Linear")
    assert (out / "linear/app/custom/vltune/__init__.py").exists()


def test_a_failed_run_can_be_continued(kind: Any, tmp_path: Path) -> None:
    """Round 1 failed for want of a quorum; round 0 is complete and comes home."""
    linear, home = kind(trouble={"site-2": [1, "value"]}), tmp_path / "runs" / "x"
    job = resolve_job(linear)
    with pytest.raises(FederationError, match="row 3 is wrong"):
        run_in_process(job, ("site-1", "site-2"), home / "flare")
    (home / JOB_RECORD).write_text(json.dumps({"job": job, "sites": ["site-1", "site-2"]}))
    start = continue_run(linear, Options(resume=home, overrides=("trouble={}",)))
    assert start.sites == ("site-1", "site-2")
    assert start.job["trouble"] == {}
    assert start.resume is not None
    assert start.resume["start_round"] == 1
    assert start.adapter == home / "adapters" / round_file(1)
    assert read_adapter(start.adapter)[1]["round"] == 1


@pytest.mark.flare
def test_a_run_and_its_continuation_equal_a_run_without_a_break(
    kind: Any, tmp_path: Path, capsys: Any
) -> None:
    """One round under the simulator, then `--resume` for two more; the bare loop runs three."""
    linear, out = kind(federation={"rounds": 1}), str(tmp_path / "runs")
    assert main(linear, ["--sites", "2", "--out", out, "--name", "x"]) == 0
    home = tmp_path / "runs" / "x"
    assert load_summary(home).rounds == 1
    assert main(linear, ["--resume", str(home)]) == 1
    assert "all 1 rounds are done" in capsys.readouterr().err.replace("\n", " ")
    assert main(linear, ["--resume", str(home), "--set", "federation.rounds=3"]) == 0
    assert "round   3/3  mAP" in capsys.readouterr().out

    summary = load_summary(home)
    assert [entry.round for entry in summary.per_round] == [0, 1, 2, 3]
    assert summary.rounds == 3
    assert summary.bytes_up_per_site_per_round > 0
    job = resolve_job(linear, ["federation.rounds=3"])
    loop = run_in_process(job, ("site-1", "site-2"), tmp_path / "loop")
    got, want = (home / "global_adapter.safetensors"), (loop / round_file(3))
    assert read_adapter(got)[1]["round"] == 3
    assert got.read_bytes() == want.read_bytes()
    assert json.loads((home / JOB_RECORD).read_text())["sites"] == ["site-1", "site-2"]


@pytest.mark.flare
def test_a_failed_run_ends_with_the_sites_reason(kind: Any, tmp_path: Path, capsys: Any) -> None:
    linear = kind(trouble={"site-2": [-1, "value"]})
    assert main(linear, ["--sites", "2", "--out", str(tmp_path / "runs")]) == 1
    error = capsys.readouterr().err.replace("\n", " ")
    assert "1 of 2 sites can take part, min_sites is 2" in error
    assert "row 3 is wrong. Mend it." in error
