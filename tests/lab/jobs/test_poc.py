"""The real jobs on a real POC: processes, certificates, submit, follow, download.

One POC for all: a site's file is read when a job starts, so each test puts its own in place.
"""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

sys.path += [
    str(Path(__file__).parents[2] / part) for part in ("vltune", "vltune/algorithms", "vltune/data")
]

from answer_sites import write_site
from tiny_blip3o import write_tiny_blip3o
from tiny_florence import write_tiny_florence
from unified_sites import BOTH, write_judge
from unified_sites import write_site as write_unified_site

from vltune.config import from_mapping
from vltune.flare.persistor import round_file
from vltune.lora_factors import parse_factor_name
from vltune_lab.jobs.collect import ADAPTERS
from vltune_lab.jobs.flare_commands import JSON
from vltune_lab.jobs.in_process import run_in_process
from vltune_lab.jobs.kinds import FEDMPT, FEDUMM, FEDVLM
from vltune_lab.jobs.launch import make_recipe
from vltune_lab.jobs.poc import Poc
from vltune_lab.jobs.poc_project import PocError, read_project
from vltune_lab.jobs.resolve import resolve_job
from vltune_lab.report.summary import RunSummary, load_summary
from vltune_lab.scenes.make import make_world
from vltune_lab.scenes.world import WorldConfig

pytestmark = pytest.mark.flare

ROOT = Path(__file__).parents[3]
SITES = ("riverside", "market")
LIMIT_SECONDS = 300.0


def run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        timeout=LIMIT_SECONDS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class System:
    """A running POC, and a link: what a test points it to holds the sites' files."""

    poc: Poc
    now: Path


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """The project of poc_workspace/ with two of its sites and a free port; ended afterwards."""
    folder = tmp_path_factory.mktemp("poc")
    content = yaml.safe_load((ROOT / "poc_workspace/project.yml").read_text())
    left_out = {"meadow", "campus"}
    content["participants"] = [p for p in content["participants"] if p["name"] not in left_out]
    content["participants"][0]["fed_learn_port"] = free_port()
    path = folder / "project.yml"
    path.write_text(yaml.safe_dump(content))
    (folder / "home").mkdir()
    poc = Poc(read_project(path), folder / "poc", Console())
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("HOME", str(folder / "home"))
        monkeypatch.setenv("NVFLARE_POC_WORKSPACE", str(poc.workspace))
        monkeypatch.setenv("VLTUNE_SITE_CONFIG", str(folder / "now/{site}/vltune_site.yaml"))
        monkeypatch.setenv("VLTUNE_GLOBAL_TEST", str(folder / "now/global/test"))
        with poc.running(allows_classes=True):
            assert poc.processes()
            yield System(poc, folder / "now")
        assert poc.processes() == []


@pytest.fixture
def put(system: System) -> Callable[[Path], None]:
    """Point the sites to a folder with their files; one thread each, for equal bits."""

    def point(folder: Path) -> None:
        for path in folder.glob("*/vltune_site.yaml"):
            path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"threads": 1}))
        system.now.unlink(missing_ok=True)
        system.now.symlink_to(folder, target_is_directory=True)

    return point


def scene_world(folder: Path) -> Path:
    """Two sites of the scene world, with a global test set."""
    sites = [
        {"name": name, "styles": ["twemoji"], "scenes": {"park": 1}, "train": 24, "validation": 16}
        for name in SITES
    ]
    config = {"seed": 3, "sites": sites, "test": 16, "test_styles": ["twemoji"], "shifted": 0}
    make_world(from_mapping(WorldConfig, config, "world"), folder)
    return folder


def submitted(job: str, out: Path, overrides: list[str]) -> RunSummary:
    arguments = ["--env", "poc", "--out", out, "--name", "poc"]
    arguments += [part for override in overrides for part in ("--set", override)]
    told = run(sys.executable, f"jobs/{job}/job.py", *arguments)
    assert "FLARE job" in told
    assert told.count("round ") >= 2
    return checked(out / "poc")


def checked(run_folder: Path) -> RunSummary:
    summary = load_summary(run_folder)
    assert (summary.environment, summary.rounds) == ("poc", 2)
    assert {site.site for site in summary.per_site} == set(SITES)
    assert (run_folder / "report.html").exists()
    assert not summary.rejected_updates
    assert not summary.left_out_sites  # every site passed the doctor
    return summary


def same_rounds(run_folder: Path, server: Path) -> bool:
    names = [round_file(1), round_file(2)]
    return all(
        (run_folder / ADAPTERS / name).read_bytes() == (server / name).read_bytes()
        for name in names
    )


def test_fedmpt_without_code_by_the_commands_of_flare_trains_what_a_bare_loop_trains(
    tmp_path: Path, system: System, put: Callable[[Path], None]
) -> None:
    """The package is installed at the sites, as far as they can tell: PYTHONPATH has it."""
    put(scene_world(tmp_path / "world"))
    overrides = ["federation.rounds=2", "training.local_epochs=1"]
    sets = [part for override in overrides for part in ("--set", override)]
    script, jobs = "jobs/fedmpt/job.py", tmp_path / "jobs"
    run(sys.executable, script, "--export", "--export-dir", jobs, "--config-only", *sets)
    assert not list(jobs.rglob("*.py"))
    poc, rounds = system.poc, []
    job_id = poc.submit(jobs / "fedmpt")
    assert poc.wait(job_id, rounds.append) == "FINISHED:COMPLETED"
    assert [record["round"] for record in rounds] == [0, 1, 2]
    download = poc.download(job_id, tmp_path / "downloads")
    run(sys.executable, script, "--downloaded", download, "--name", "poc", "--out", tmp_path)
    summary = checked(tmp_path / "poc")
    assert summary.global_mAP is not None
    server = run_in_process(resolve_job(FEDMPT, overrides), SITES, tmp_path / "loop")
    assert same_rounds(tmp_path / "poc", server)


def test_a_member_may_look_and_not_submit(tmp_path: Path, system: System) -> None:
    poc = system.poc
    member = poc.folder / poc.project.users["member"]
    make_recipe(resolve_job(FEDMPT)).export(str(tmp_path))
    with pytest.raises(PocError, match="not authorized for 'submit_job'"):
        poc.nvflare(*JSON, "job", "submit", "-j", tmp_path / "fedmpt", "--startup-kit", member)
    seen = poc.nvflare(*JSON, "system", "status", "--startup-kit", member)
    assert {entry["client_name"] for entry in seen["clients"]} == set(SITES)


def test_a_running_system_is_not_wiped(system: System) -> None:
    with pytest.raises(PocError, match=r"running .* nvflare poc stop"):
        system.poc.prepare()
    assert system.poc.kit.is_dir()


def test_fedvlm_trains_what_a_bare_loop_trains_and_only_b_comes_home(
    tmp_path: Path, put: Callable[[Path], None]
) -> None:
    """What each site kept of A, and its adapter folder, are the bare loop's too."""
    weights = write_tiny_florence(tmp_path / "model")
    overrides = [
        f"backbone.weights={weights}",
        "lora.rank=2",
        "training.batch_size=4",
        "max_answer_tokens=4",
        "federation.rounds=2",
    ]
    for name in ("sites", "again"):
        for site in SITES:
            write_site(tmp_path / name, site)
    put(tmp_path / "again")
    server = run_in_process(resolve_job(FEDVLM, overrides), SITES, tmp_path / "loop")
    put(tmp_path / "sites")
    submitted("fedvlm", tmp_path / "runs", overrides)
    home = tmp_path / "runs" / "poc"
    assert same_rounds(home, server)
    assert {parse_factor_name(name)[1] for name in load_file(home / ADAPTERS / round_file(2))} == {
        "B"
    }
    for site in SITES:
        one, other = (kept_by(tmp_path / name / site) for name in ("sites", "again"))
        assert any("lora_A" in name for name in one)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_fedumm_trains_what_a_bare_loop_trains(tmp_path: Path, put: Callable[[Path], None]) -> None:
    """Sites that answer and draw; what each keeps, and its adapter folder, are the loop's too."""
    weights, judge = write_tiny_blip3o(tmp_path / "model"), write_judge(tmp_path / "judge")
    overrides = [
        "backbone.model=blip3o-tiny",
        f"backbone.weights={weights}",
        f"judge.weights={judge}",
        "samples={}",
        "lora.rank=2",
        "training.batch_size=4",
        "max_answer_tokens=4",
        "federation.rounds=2",
    ]
    for name in ("sites", "again"):
        for number, site in enumerate(SITES):
            write_unified_site(tmp_path / name, site, BOTH, start=100 * number)
    put(tmp_path / "again")
    server = run_in_process(resolve_job(FEDUMM, overrides), SITES, tmp_path / "loop")
    put(tmp_path / "sites")
    submitted("fedumm", tmp_path / "runs", overrides)
    assert same_rounds(tmp_path / "runs" / "poc", server)
    for site in SITES:
        one, other = (kept_by(tmp_path / name / site) for name in ("sites", "again"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def kept_by(folder: Path) -> dict[str, Tensor]:
    """Last personal tensors and exported adapter of a site with one run."""
    state = folder / "vltune_state" / folder.name
    (personal,) = state.glob("*/personal_round1.safetensors")
    (adapter,) = state.glob("*/peft_adapter/adapter_model.safetensors")
    return load_file(personal) | load_file(adapter)
