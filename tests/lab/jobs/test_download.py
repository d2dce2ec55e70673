"""A download as FLARE lays it out: the export beside the server's folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from linear_site import make_job, write_site

from vltune.config import ConfigError
from vltune.flare.run_log import STATE_FILE
from vltune_lab.jobs.download import JOB_RECORD, bring_home, job_of
from vltune_lab.jobs.in_process import run_in_process
from vltune_lab.jobs.launch import make_recipe
from vltune_lab.jobs.resolve import JobKind
from vltune_lab.jobs.simulate import RunFailedError
from vltune_lab.report.summary import load_summary

NAMES = ("site-1", "site-2")
LINEAR = JobKind("linear", Path("linear.yaml"))


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("download")
    for index, name in enumerate(NAMES):
        write_site(folder / name, name, 17 + index, seed=index)
    job = make_job()
    files = folder / "{site}" / "vltune_site.yaml"
    server = run_in_process(job, NAMES, folder / "run", site_files=files)
    make_recipe(job).export(str(folder / "download"))
    (folder / "download" / "linear").rename(folder / "download" / "job")
    shutil.copytree(server, folder / "download" / "workspace" / "app_server")
    return folder / "download"


@pytest.fixture
def download(downloaded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(downloaded, tmp_path / "download"))


def test_the_job_is_put_together_again(download: Path) -> None:
    job: dict[str, Any] = job_of(download)
    asked = make_job()
    assert asked["federation"].items() <= job.pop("federation").items()
    assert job == {key: value for key, value in asked.items() if key != "federation"}


def test_a_run_folder_is_made_and_can_be_resumed(download: Path, tmp_path: Path) -> None:
    run_folder = bring_home(LINEAR, download, tmp_path / "runs" / "x", "prod")
    summary = load_summary(run_folder)
    assert (summary.environment, summary.rounds, summary.sites) == ("prod", 2, 2)
    record = json.loads((run_folder / JOB_RECORD).read_text())
    assert record["sites"] == list(NAMES)
    assert len(list((run_folder / "adapters").glob("*.safetensors"))) >= 3
    with pytest.raises(ConfigError, match="exists"):
        bring_home(LINEAR, download, run_folder, "prod")


def test_a_failed_job_is_told_with_its_reason(download: Path, tmp_path: Path) -> None:
    state = download / "workspace" / "app_server" / STATE_FILE
    content = json.loads(state.read_text()) | {"status": "failed", "reason": "no site"}
    state.write_text(json.dumps(content))
    with pytest.raises(RunFailedError, match="the job is failed: no site"):
        bring_home(LINEAR, download, tmp_path / "x", "poc")
    assert not (tmp_path / "x").exists()


def test_other_folders_are_refused(download: Path, tmp_path: Path) -> None:
    other = JobKind("FedVLM", Path("fedvlm.yaml"))
    with pytest.raises(ConfigError, match="a job of linear, not of FedVLM"):
        bring_home(other, download, tmp_path / "x", "poc")
    with pytest.raises(ConfigError, match="holds no rounds"):
        bring_home(LINEAR, tmp_path / "nothing", tmp_path / "x", "poc")
    shutil.rmtree(download / "job")
    with pytest.raises(ConfigError, match="holds no exported job"):
        bring_home(LINEAR, download, tmp_path / "x", "poc")
