import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vltune.config import ConfigError
from vltune_lab.jobs.launch import main, make_recipe
from vltune_lab.jobs.resolve import resolve_job

# The method's own check imports torch and open_clip: seconds.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
JOB = ROOT / "jobs" / "fedmpt" / "job.py"


@pytest.fixture(scope="module")
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fedmpt_job", JOB)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def exported(module: ModuleType, folder: Path, *overrides: str) -> Path:
    make_recipe(resolve_job(module.FEDMPT, overrides)).export(str(folder))
    return folder / "fedmpt" / "app"


def job_of(app: Path) -> dict[str, Any]:
    return json.loads((app / "config/vltune_job.json").read_text())


def test_the_job_carries_classes_conditions_and_every_value(
    module: ModuleType, tmp_path: Path
) -> None:
    app = exported(module, tmp_path, "seed=99", "training.batch_size=7")
    job = job_of(app)
    assert (job["method"], job["seed"], job["training"]["batch_size"]) == ("FedMPT", 99, 7)
    assert len(job["classnames"]) >= 60
    assert job["classnames"] == job["conditions"]["classnames"]
    assert len(job["conditions"]["conditions"]) == 5
    assert "federation" not in job
    client = json.loads((app / "config/config_fed_client.json").read_text())
    assert client["executors"][0]["executor"]["args"]["participant"] == (
        "vltune.algorithms.fedmpt.build_participant"
    )


def test_no_site_path_is_in_the_job(module: ModuleType, tmp_path: Path) -> None:
    """Only the backbone's weights may be a path; a site can name its own."""
    job = job_of(exported(module, tmp_path))
    del job["backbone"]["weights"]
    assert str(ROOT) not in json.dumps(job)
    assert not {"train", "validation", "images", "annotations", "state_dir"} & set(job)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.rnak=8", "unknown key rnak"),
        ("model.variant=papre", "variant"),
        ("training.learning_rate=-1", "learning_rate"),
        ("backbone.weights=", "weights"),
        ("federation.round=3", "unknown key round"),
    ],
)
def test_a_wrong_value_ends_before_anything_starts(
    module: ModuleType, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_job(module.FEDMPT, [override])


def test_a_class_list_that_differs_from_the_cache_is_named(
    module: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(module.FEDMPT, ["--set", "classnames=[cat, dog]"]) == 1
    assert "embedded.json" in capsys.readouterr().err


def test_the_command_of_the_readme_exports(tmp_path: Path) -> None:
    command = [sys.executable, str(JOB), "--export", "--export-dir", str(tmp_path / "jobs")]
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": f"{ROOT}/custom:{ROOT}/lab", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "jobs/fedmpt/app/custom/vltune/flare/executor.py").exists()
