"""FedUMM through its job and the real simulator: what comes home, and what the report shows."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path += [
    str(Path(__file__).parents[1] / part) for part in ("vltune", "vltune/algorithms", "vltune/data")
]

from tiny_blip3o import write_tiny_blip3o
from unified_sites import CAPTIONS, VQA, write_judge, write_site

from vltune.config import ConfigError
from vltune_lab.jobs.drawing_samples import chosen_rounds, draw_samples
from vltune_lab.jobs.kinds import FEDUMM
from vltune_lab.jobs.launch import Options, make_recipe, run_job
from vltune_lab.jobs.resolve import resolve_job


@pytest.mark.slow
def test_the_export_tells_the_sites_every_value(tmp_path: Path) -> None:
    job = resolve_job(
        FEDUMM, ["aggregation.mode=plora", "tasks.routing={understanding: 6, generation: 10}"]
    )
    make_recipe(job).export(str(tmp_path))
    told = json.loads((tmp_path / "fedumm" / "app" / "config" / "vltune_job.json").read_text())
    assert told["tasks"]["routing"] == {"understanding": 6, "generation": 10}
    assert told["judge"] == {"weights": "assets/judge-compact"}


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("federation.metric=accuracy", "take vqa_accuracy or geneval"),
        ("tasks.generation_weights=2", "generation_weights"),
        ("tasks.routing={understanding: 6, generation: 6}", r"add up to lora\.rank, 16"),
        ("samples.prompts=['']", "prompts that are not empty"),
        ("backbones.model=x", "unknown key backbones"),
    ],
)
def test_wrong_values_end_before_anything_is_sent(override: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        resolve_job(FEDUMM, [override])


def test_pictures_cannot_be_what_counts_without_a_judge() -> None:
    with pytest.raises(ConfigError, match="metric is geneval, but there is no judge"):
        resolve_job(FEDUMM, ["federation.metric=geneval", "judge=null"])


def test_rounds_are_chosen_evenly_and_with_the_last(tmp_path: Path) -> None:
    for number in (1, 2, 3, 4, 5, 6, 10):
        (tmp_path / f"global_adapter_round{number}.safetensors").touch()
    assert chosen_rounds(tmp_path, 3) == [0, 1, 4, 10]
    assert chosen_rounds(tmp_path, 9) == [0, 1, 2, 3, 4, 5, 6, 10]
    assert chosen_rounds(tmp_path / "none", 3) == [0]


@pytest.mark.flare
def test_half_answer_and_half_draw_in_the_simulator_and_the_report_shows_drawings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_blip3o(tmp_path / "model")
    write_judge(tmp_path / "judge")
    for number, (site, train) in enumerate(
        {"site-1": {"vqa": VQA}, "site-2": {"captions": CAPTIONS}}.items()
    ):
        write_site(tmp_path / "data", site, train, start=100 * number)
    monkeypatch.setenv("VLTUNE_SITE_CONFIG", str(tmp_path / "data" / "{site}" / "vltune_site.yaml"))
    overrides = (
        "backbone.model=blip3o-tiny",
        f"backbone.weights={tmp_path / 'model'}",
        f"judge.weights={tmp_path / 'judge'}",
        "lora.rank=2",
        "training.batch_size=4",
        "max_answer_tokens=4",
        "samples.prompts=[a dog, two cats]",
        "federation.rounds=2",
        "federation.tensorboard=false",
    )
    given = {"sites": ("site-1", "site-2"), "overrides": overrides}
    run = run_job(FEDUMM, Options(**given, name="run", out=tmp_path / "runs"))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["rounds"] == 2
    index = json.loads((run / "drawings" / "index.json").read_text())
    assert index["rounds"] == [0, 1, 2]
    before, after = (
        np.asarray(Image.open(run / "drawings" / index["files"][row][0])) for row in (0, 2)
    )
    assert before.shape == (16, 16, 3)
    assert (before != after).any()
    page = (run / "report.html").read_text()
    assert "What it draws" in page
    assert page.count("data:image/png") == 6
    job = resolve_job(FEDUMM, overrides)
    assert not draw_samples(run, job | {"aggregation": {"mode": "plora"}})
    assert not draw_samples(run, job | {"backbone": {"model": "blip3o-x", "weights": "nowhere"}})
