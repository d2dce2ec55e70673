import json
import re
from pathlib import Path
from typing import Any

import pytest
from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST

import vltune
from vltune.code_identity import code_files, code_hash
from vltune.config import ConfigError
from vltune.flare.persistor import write_adapter
from vltune.site_policy import CLASSES
from vltune_lab.jobs.launch import make_recipe


def exported(job: dict[str, Any], folder: Path, *resume: Any) -> Path:
    make_recipe(job, *resume).export(str(folder))
    return folder / job["name"] / "app"


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_export_is_the_whole_package_and_the_job(tmp_path: Path, job: Any) -> None:
    app = exported(job(), tmp_path)
    source = Path(vltune.__file__).parent
    package = {name for name in files_of(source) if "__pycache__" not in name}
    assert files_of(app / "custom/vltune") == package
    sent = json.loads((app / "config/vltune_job.json").read_text())
    assert sent == {
        "name": "linear",
        "method": "linear",
        "seed": 34,
        "learning_rate": 0.5,
        "num_rounds": 2,
    }
    meta = json.loads((app.parent / "meta.json").read_text())
    assert (meta["name"], meta["min_clients"]) == ("linear", 2)


def test_without_code_there_are_configurations_only_and_the_sites_list_has_every_class(
    tmp_path: Path, job: Any
) -> None:
    make_recipe(job(), with_code=False).export(str(tmp_path))
    app = tmp_path / job()["name"] / "app"
    assert {path.parent for path in app.rglob("*") if path.is_file()} == {app / "config"}
    named = set()
    for name in ("config_fed_client.json", "config_fed_server.json"):
        named |= set(re.findall(r'"path": "([^"]+)"', (app / "config" / name).read_text()))
    assert named - set(DEFAULT_CLASS_ALLOW_LIST) == set(CLASSES)


def test_the_server_asks_for_version_and_code_of_the_export(tmp_path: Path, job: Any) -> None:
    app = exported(job(), tmp_path)
    server = json.loads((app / "config/config_fed_server.json").read_text())
    facts = server["workflows"][0]["args"]["run"]["facts"]
    assert facts == {"vltune": vltune.__version__, "code": code_hash(app / "custom/vltune")}
    made_with = json.loads((app / "config/vltune_versions.json").read_text())
    assert made_with["code"] == facts["code"]
    assert made_with["files"] == code_files(app / "custom/vltune")


def test_the_sites_gate_stands_at_every_task(tmp_path: Path, job: Any) -> None:
    app = exported(job(), tmp_path)
    client = json.loads((app / "config/config_fed_client.json").read_text())
    path = "vltune.flare.filters.SharedOnlyFilter"
    assert client["task_result_filters"] == [
        {"tasks": [task], "filters": [{"path": path, "args": {}}]}
        for task in client["executors"][0]["tasks"]
    ]
    assert client["default_task_fetch_interval"] == 0.1
    server = json.loads((app / "config/config_fed_server.json").read_text())
    assert server["server"] == {"task_request_interval": 0.1}


def test_text_with_braces_reaches_the_sites_unchanged(tmp_path: Path, job: Any) -> None:
    """FLARE formats strings of its own configuration files."""
    app = exported(job(gloss="a {nice} photo of {}"), tmp_path)
    assert json.loads((app / "config/vltune_job.json").read_text())["gloss"] == (
        "a {nice} photo of {}"
    )


def test_a_second_export_replaces_the_first(tmp_path: Path, job: Any) -> None:
    exported(job(), tmp_path)
    app = exported(job(seed=35), tmp_path)
    assert json.loads((app / "config/vltune_job.json").read_text())["seed"] == 35


def test_a_resumed_run_carries_adapter_and_round(tmp_path: Path, job: Any) -> None:
    import torch

    adapter = tmp_path / "adapter"
    write_adapter(adapter, {"a": torch.ones(2)}, {"round": 1})
    resume = {"run_id": "run", "start_round": 1, "best": 0.5}
    app = exported(job(), tmp_path / "jobs", resume, adapter)
    assert (app / "config/resume_adapter.safetensors").read_bytes() == adapter.read_bytes()
    server = json.loads((app / "config/config_fed_server.json").read_text())
    run = server["workflows"][0]["args"]["run"]
    assert (run["run_id"], run["start_round"], run["best"]) == ("run", 1, 0.5)


def test_the_robust_rule_goes_to_the_server_and_not_to_the_sites(tmp_path: Path, job: Any) -> None:
    robust = {"rule": "krum", "num_malicious": 1}
    app = exported(job(federation={"robust": robust, "min_sites": 5}), tmp_path)
    server = json.loads((app / "config/config_fed_server.json").read_text())
    arguments = {part["id"]: part["args"] for part in server["components"]}
    sent = arguments["aggregator"]["robust"]
    assert {key: value for key, value in sent.items() if value} == robust
    assert server["workflows"][0]["args"]["federation"]["robust"] == sent
    assert "krum" not in (app / "config/vltune_job.json").read_text()


def test_what_does_not_go_together_is_not_exported(job: Any) -> None:
    broken = job(
        aggregation={"mode": "svd"}, federation={"robust": {"rule": "median"}, "min_sites": 3}
    )
    with pytest.raises(ConfigError, match=r"excludes LoRA modes with products.*compatibility\.md"):
        make_recipe(broken)


@pytest.mark.parametrize("key", ["name", "method", "seed", "participant", "federation"])
def test_a_missing_key_is_named(job: Any, key: str) -> None:
    broken = job()
    del broken[key]
    with pytest.raises(ConfigError, match=key):
        make_recipe(broken)
