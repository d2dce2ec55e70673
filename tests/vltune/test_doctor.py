"""The doctor on small real sites of every kind: green as they are, red where one thing is wrong."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parent / "algorithms"))
sys.path.append(str(Path(__file__).parent / "data"))

import answer_sites
import unified_sites
from exported_jobs import change, write_job
from tiny_blip3o import write_tiny_blip3o
from tiny_florence import write_tiny_florence

from vltune.cli import app
from vltune.conditions import condition_cache_mapping
from vltune.config import ConfigError
from vltune.doctor import Options, Report, examine, locate_site
from vltune.doctor_findings import DoctorError, Finding
from vltune.doctor_job import read_exported_job
from vltune.doctor_model import largest_residual

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]
torch.set_num_threads(1)

CLASSNAMES = ["cat", "dog", "zebra"]
CONDITIONS = [("scene type", "Where it is."), ("lighting", "How bright.")]
Folder = Callable[..., Path]


def write_labelled(folder: Path, **keys: Any) -> Path:
    """Six images with a class each, to train and to measure on."""
    for part, start in (("train", 0), ("validation", 50)):
        (folder / part / "images").mkdir(parents=True)
        images, annotations = [], []
        for number in range(6):
            pixels = np.random.default_rng(start + number).integers(0, 256, (24, 40, 3), np.uint8)
            Image.fromarray(pixels).save(folder / part / "images" / f"secret-{number}.png")
            images.append({"id": number, "file_name": f"secret-{number}.png"})
            annotations.append({"id": number, "image_id": number, "category_id": number % 3})
        categories = [{"id": i, "name": name} for i, name in enumerate(CLASSNAMES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / part / "instances.json").write_text(json.dumps(content))
    site = {
        part: {"images": f"{part}/images", "annotations": f"{part}/instances.json"}
        for part in ("train", "validation")
    }
    path = folder / "vltune_site.yaml"
    path.write_text(yaml.safe_dump(site | {"site": "hospital-a", "threads": 1} | keys))
    return path


@pytest.fixture
def labels_job(tmp_path: Path, clip_folder: Folder) -> Path:
    made_by = {"method": "by hand", "date": "2026-01-01"}
    job = {
        "name": "fedmpt",
        "method": "FedMPT",
        "participant": "vltune.algorithms.fedmpt.build_participant",
        "seed": 7,
        "classnames": CLASSNAMES,
        "conditions": condition_cache_mapping("three", CLASSNAMES, CONDITIONS, made_by),
        "backbone": {"model": "tiny", "weights": str(clip_folder())},
        "model": {"rank": 5, "gate_rank": 2, "condition_length": 2, "class_length": 2},
        "training": {"batch_size": 3, "learning_rate": 0.01},
    }
    return write_job(tmp_path / "job", job)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return write_labelled(tmp_path / "hospital")


@pytest.fixture(scope="module")
def florence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_florence(tmp_path_factory.mktemp("tiny") / "florence2-tiny")


@pytest.fixture
def answers(tmp_path: Path, florence: Path) -> tuple[Path, Path]:
    """A FedVLM job and a site of preferences."""
    folder = answer_sites.write_site(tmp_path / "data", "site-1")
    job = write_job(tmp_path / "answers-job", answer_sites.make_job(florence))
    return job, folder / "vltune_site.yaml"


def diagnose(job: Path, site: Path, **options: Any) -> Report:
    config, name = locate_site(site, options.get("kit"))
    return examine(read_exported_job(job), config, name, Options(**options))


def found(report: Report, name: str) -> Finding:
    (finding,) = [finding for finding in report.findings if finding.name == name]
    return finding


def reds(report: Report) -> list[str]:
    return [finding.name for finding in report.findings if finding.status == "fail"]


def edit(path: Path, **keys: Any) -> Path:
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | keys))
    return path


def test_a_site_with_labels_is_green(labels_job: Path, site: Path) -> None:
    report = diagnose(labels_job, site, link_mbps=100.0)
    assert report.status == "ok", report.findings
    assert found(report, "data train").value == "6 images"
    assert found(report, "conditions").value == "2 conditions of 3 classes"
    # Features of 12 images: (1 + 15 patches) x 11 x 2 bytes and a digest of 32 each.
    assert found(report, "disk, features").value == "needs 0.0 MB of features"
    assert not (site.parent / "vltune_cache").exists()
    assert not (site.parent / "vltune_state").exists()


def test_a_site_with_answers_is_green(answers: tuple[Path, Path]) -> None:
    report = diagnose(*answers)
    assert report.status == "ok", report.findings
    assert found(report, "adapter").value.endswith("rank 2")
    assert found(report, "data train").value == "12 records of 12 images"
    assert found(report, "device").value == "cpu"
    assert not [finding for finding in report.findings if finding.name == "class list"]


def unified(tmp_path: Path, **changes: Any) -> tuple[Path, Path]:
    """A FedUMM job that draws and a site of both tasks."""
    write_tiny_blip3o(tmp_path / "blip3o-tiny")
    unified_sites.write_judge(tmp_path / "judge")
    job: dict[str, Any] = {
        "name": "fedumm",
        "method": "FedUMM",
        "participant": "vltune.algorithms.fedumm.build_participant",
        "seed": 7,
        "backbone": {"model": "blip3o-tiny", "weights": str(tmp_path / "blip3o-tiny")},
        "lora": {"rank": 2, "alpha": 4.0},
        "aggregation": {"mode": "fedavg"},
        "judge": {"weights": str(tmp_path / "judge")},
        "training": {"learning_rate": 1e-2, "batch_size": 4},
        "max_answer_tokens": 4,
    }
    site = unified_sites.write_site(tmp_path / "data", "site-1", unified_sites.BOTH)
    return write_job(tmp_path / "job", job | changes), site


def test_a_site_of_both_tasks_is_green(tmp_path: Path) -> None:
    report = diagnose(*unified(tmp_path))
    assert report.status == "ok", report.findings
    names = [finding.name for finding in report.findings if finding.name.startswith("data ")]
    assert names == [
        "data train, questions",
        "data train, captions",
        "data validation, questions",
        "data validation, captions",
        "data validation, prompts",
        "data test, prompts",
    ]
    assert found(report, "judge").value == "compact"


def test_prompts_without_a_judge(tmp_path: Path) -> None:
    assert reds(diagnose(*unified(tmp_path, judge=None))) == ["judge"]


def test_prompts_that_the_judge_does_not_know(tmp_path: Path) -> None:
    job, site = unified(tmp_path)
    prompt = unified_sites.PROMPT | {"include": [{"class": "unicorn", "count": 1}]}
    (site.parent / "prompts.jsonl").write_text(json.dumps(prompt) + "\n")
    report = diagnose(job, site)
    assert reds(report) == ["judge"]
    assert "unicorn" in found(report, "judge").private


def test_texts_that_are_too_long(tmp_path: Path) -> None:
    job, site = unified(tmp_path)
    path = site.parent / "captions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"caption": "dog " * 999}) + "\n" for row in rows))
    prompt = unified_sites.PROMPT | {"prompt": "a dog " * 999}
    (site.parent / "prompts.jsonl").write_text(json.dumps(prompt) + "\n")
    assert [name for name in reds(diagnose(job, site)) if "prompts" in name] == [
        "data validation, prompts",
        "data test, prompts",
    ]
    assert "data train, captions" in reds(diagnose(job, site))


def test_captions_for_a_backbone_that_cannot_draw(tmp_path: Path, florence: Path) -> None:
    backbone = {"model": "florence2-tiny", "weights": str(florence)}
    assert "drawing" in reds(diagnose(*unified(tmp_path, backbone=backbone)))


def test_wrong_class_list(labels_job: Path, site: Path) -> None:
    change(labels_job / "app/config/vltune_job.json", classnames=["cat", "zebra", "dog"])
    report = diagnose(labels_job, site)
    assert reds(report) == ["job and site", "class list", "conditions"]
    assert "Export the job" in found(report, "class list").cure


def test_a_class_that_nobody_labelled(labels_job: Path, site: Path) -> None:
    change(site.parent / "train" / "instances.json", categories=[{"id": 0, "name": "cat"}])
    assert reds(diagnose(labels_job, site)) == ["data train"]


def test_missing_weights(labels_job: Path, site: Path) -> None:
    report = diagnose(labels_job, edit(site, weights={"tiny": "nowhere"}))
    assert reds(report) == ["backbone"]
    assert "nowhere" in found(report, "backbone").private
    assert found(report, "data train").status == "ok"  # the other checks are made all the same


def test_weights_of_another_hash(labels_job: Path, site: Path) -> None:
    path = labels_job / "app/config/vltune_job.json"
    backbone = json.loads(path.read_text())["backbone"]
    change(path, backbone=backbone | {"sha256": "0" * 64})
    assert reds(diagnose(labels_job, site)) == ["backbone"]


@pytest.mark.parametrize(("policy", "status"), [("stop", "fail"), ("skip", "warn")])
def test_unreadable_image(labels_job: Path, site: Path, policy: str, status: str) -> None:
    (site.parent / "train/images/secret-3.png").write_bytes(b"\x89PNG no more")
    finding = found(diagnose(labels_job, edit(site, on_bad_image=policy)), "data train")
    assert finding.status == status
    assert "1 " in finding.value
    assert "secret" not in finding.value + finding.cure


def test_unreadable_image_of_answers(answers: tuple[Path, Path]) -> None:
    job, site = answers
    (site.parent / "train-3.png").write_bytes(b"no image")
    report = diagnose(job, site)
    assert reds(report) == ["data"]
    assert "train.jsonl" in found(report, "data").private
    assert found(report, "data train").value.endswith("1 left out as missing or unreadable")


def test_preferences_that_are_not_there(answers: tuple[Path, Path], tmp_path: Path) -> None:
    job, _ = answers
    change(job / "app/config/vltune_job.json", objective={"name": "dpo"})
    other = answer_sites.write_site(tmp_path / "plain", "site-1", data="captions")
    assert reds(diagnose(job, other / "vltune_site.yaml")) == ["objective"]


def test_too_little_disk(labels_job: Path, site: Path) -> None:
    # 12 images of 16 x 11 halves and a digest: 4,608 bytes.
    assert found(diagnose(labels_job, site, disk_quota_bytes=4607), "disk, features").status == (
        "fail"
    )
    report = diagnose(labels_job, site, disk_quota_bytes=4608)
    assert found(report, "disk, features").status == "warn"  # fits, with nothing to spare


def test_too_little_memory(labels_job: Path, site: Path) -> None:
    assert reds(diagnose(labels_job, site, memory_limit_bytes=1000)) == ["memory"]


def test_wrong_version(labels_job: Path, site: Path, tmp_path: Path) -> None:
    lock = tmp_path / "other.lock"
    lock.write_text("open-clip-torch==0.0.1\ntorch==0.1.0\n")
    report = diagnose(labels_job, site, lock=lock)
    assert reds(report) == ["package open_clip_torch"]
    assert found(report, "package torch").status == "warn"


def test_timeout_too_short(labels_job: Path, site: Path) -> None:
    slow = found(diagnose(labels_job, site, link_mbps=1e-5), "timeouts")
    assert slow.status == "fail"
    assert "round_timeout_seconds=" in slow.cure


def test_a_residual_comes_down_on_top(answers: tuple[Path, Path]) -> None:
    """FedEx: beside A (2, D_in) and B (D_out, 2) at most D_out x D_in of each module."""
    job, site = answers
    assert largest_residual({"base_model.model.x.lora_A.weight": (2, 5)}) == 0
    both = {"base_model.model.x.lora_A.weight": (2, 5), "base_model.model.x.lora_B.weight": (7, 2)}
    assert largest_residual(both) == 35
    plain = found(diagnose(job, site), "timeouts").value
    change(job / "app/config/vltune_job.json", aggregation={"mode": "fedex"})
    fedex = found(diagnose(job, site), "timeouts").value
    assert float(fedex.split()[0]) > float(plain.split()[0])


def test_another_kind_of_data(labels_job: Path, answers: tuple[Path, Path], site: Path) -> None:
    assert "job and site" in reds(diagnose(answers[0], site))


def test_a_rank_that_the_mode_refuses(answers: tuple[Path, Path]) -> None:
    job, site = answers
    assert reds(diagnose(job, edit(site, lora_rank=1))) == ["adapter"]


def test_a_resumed_run_of_another_rank(answers: tuple[Path, Path]) -> None:
    job, site = answers
    path = job / "app/config/resume_adapter.safetensors"
    save_file({"layer.lora_B": torch.zeros(3, 4)}, path)
    report = diagnose(job, site)
    assert reds(report) == ["adapter"]
    assert "layer.lora_B" in found(report, "adapter").private


def test_no_such_device(answers: tuple[Path, Path]) -> None:
    job, site = answers
    assert "device" in reds(diagnose(job, edit(site, device="cuda:99")))


def test_deep_encodes(labels_job: Path, site: Path) -> None:
    report = diagnose(labels_job, site, deep=True)
    assert found(report, "prepare").value.startswith("6 to train on")
    again = found(diagnose(labels_job, site, disk_quota_bytes=0), "disk, features")
    assert again.status == "ok"  # everything is encoded


def test_command(labels_job: Path, site: Path) -> None:
    arguments = ["doctor", "--job", str(labels_job), "--site", str(site)]
    table = CliRunner().invoke(app, arguments)
    assert table.exit_code == 0, table.output
    assert "hospital-a: ok" in table.output
    (site.parent / "train/images/secret-3.png").unlink()
    red = CliRunner().invoke(app, [*arguments, "--json"])
    assert red.exit_code == 1
    (content,) = json.loads(red.stdout)["sites"]
    assert (content["site"], content["status"]) == ("hospital-a", "fail")


def test_the_public_json_holds_nothing_private(labels_job: Path, site: Path) -> None:
    """Not the folder, not a file's name: with every kind of failure that names one."""
    (site.parent / "train/images/secret-3.png").unlink()
    edit(site, weights={"tiny": "secret-weights"}, cache_dir="secret-cache")
    report = diagnose(labels_job, site)
    told = json.dumps(report.to_mapping())
    assert "secret" not in told
    assert str(site.parent) not in told
    assert "secret-3.png" in report.to_mapping(private=True)["private"]["data train"]


def test_no_job(tmp_path: Path) -> None:
    with pytest.raises(DoctorError, match="exported job"):
        read_exported_job(tmp_path)


def test_no_site(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vltune_site\.yaml"):
        locate_site(None, tmp_path)


def test_the_file_of_the_startup_kit(labels_job: Path, site: Path, tmp_path: Path) -> None:
    kit = tmp_path / "hospital-a"
    (kit / "local").mkdir(parents=True)
    edit(site).rename(kit / "local" / "vltune_site.yaml")
    for part in ("train", "validation"):
        (site.parent / part).rename(kit / "local" / part)
    config, name = locate_site(None, kit)
    assert name == "hospital-a"
    report = examine(read_exported_job(labels_job), config, name, Options(kit=kit))
    # The data are green; the rest of the kit is not there.
    assert reds(report) == ["certificate", "ports"]
    assert found(report, "authorization").status == "warn"


def test_wrong_options() -> None:
    with pytest.raises(ConfigError, match="link_mbps"):
        Options(link_mbps=0)
    with pytest.raises(ConfigError, match="disk_quota_bytes"):
        Options(disk_quota_bytes=-1)
