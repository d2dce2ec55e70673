"""FedUMM on a tiny random BLIP3-o: sites that answer, draw, or do both."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel

sys.path.append(str(Path(__file__).parents[1] / "data"))
sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parent))

from tiny_blip3o import write_tiny_blip3o
from tiny_florence import write_tiny_florence
from unified_sites import BOTH, CAPTIONS, VQA, write_judge, write_site

from vltune.algorithms.fedumm import build_participant
from vltune.algorithms.lora_site import EXPORT_FOLDER, LoraParticipant
from vltune.algorithms.unified_task import UnifiedTask
from vltune.backbones.checkpoint import BackboneConfig, BackboneError
from vltune.backbones.registry import load_backbone
from vltune.config import ConfigError
from vltune.participant import TrainingStopped
from vltune.site_config import read_site_config
from vltune_lab.jobs.in_process import run_in_process

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]
torch.set_num_threads(1)

Make = Callable[..., LoraParticipant]


def go() -> bool:
    return False


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """blip3o-tiny, florence2-tiny, and a judge that knows dogs."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny_blip3o(folder / "blip3o-tiny")
    write_tiny_florence(folder / "florence2-tiny")
    write_judge(folder / "judge")
    return folder


def make_job(models: Path, **changes: Any) -> dict[str, Any]:
    job: dict[str, Any] = {
        "name": "fedumm",
        "method": "FedUMM",
        "participant": "vltune.algorithms.fedumm.build_participant",
        "seed": 7,
        "backbone": {"model": "blip3o-tiny", "weights": str(models / "blip3o-tiny")},
        "lora": {"rank": 2, "alpha": 4.0},
        "aggregation": {"mode": "fedavg"},
        "judge": {"weights": str(models / "judge")},
        "training": {"learning_rate": 1e-2, "batch_size": 4, "local_epochs": 1},
        "batch_size": 4,
        "max_answer_tokens": 4,
        "federation": {"rounds": 2, "min_sites": 2, "metric": "vqa_accuracy", "tensorboard": False},
    }
    return job | changes


@pytest.fixture
def participate(tmp_path: Path, models: Path) -> Make:
    def make(train: dict[str, Any] = BOTH, **changes: Any) -> LoraParticipant:
        path = write_site(tmp_path / "data", "site-1", train)
        state = tmp_path / "state"
        state.mkdir(exist_ok=True)
        job = make_job(models, **changes)
        del job["federation"]
        return build_participant(job, read_site_config(path), "site-1", state, 1)

    return make


def task_of(site: LoraParticipant) -> UnifiedTask:
    assert isinstance(site.task, UnifiedTask)
    return site.task


def test_both_tasks_are_trained_measured_and_compared(participate: Make) -> None:
    site = participate()
    handshake = site.prepare(go)
    start = handshake.initial
    assert len(handshake.facts["judge"]) == 64
    task = task_of(site)
    assert task.num_examples == len(task.train) == 3 * (8 - task.num_validation // 3)
    first = site.evaluate(start).metrics
    assert {"vqa_accuracy", "generation_loss", "geneval", "geneval_single_object"} <= first.keys()
    assert first["zero_shot_generation_loss"] == first["generation_loss"]  # B is zero
    update = site.train(start, 0, go)
    assert {"loss_understanding", "loss_generation", "task_cosine"} <= update.metrics.keys()
    assert all(-1 <= v <= 1 for n, v in update.metrics.items() if n.startswith("task_cosine"))
    after = site.evaluate(update.tensors).metrics
    assert after["generation_loss"] != first["generation_loss"]
    assert site.finish(update.tensors)["test_geneval"] in (0.0, 1.0)


def test_a_batch_is_the_weighted_mean_of_both_tasks(participate: Make) -> None:
    """Three records, two of them questions: (2 (L1 + L2) + 3 L3) / 3, gradients too."""
    site = participate(tasks={"understanding_weight": 2.0, "generation_weight": 3.0})
    site.prepare(go)
    task = task_of(site)
    task.start_round(5)
    split = task.train.num_understanding
    batch = task.batch_at(torch.tensor([0, split + 1, 3]))
    assert batch.understanding is not None
    assert batch.drawing is not None
    assert len(batch.understanding.prompts) == 2
    asked, drawn = batch.understanding, batch.drawing
    total = task.loss(batch)
    task.start_round(5)
    generator = task._generator
    backbone = task._artist
    first = backbone.loss(asked.image_tokens, asked.prompts, asked.answers)
    second = backbone.generation_loss(drawn.targets, drawn.prompts, generator=generator)
    expected = (2 * first.sum() + 3 * second.sum()) / 3
    torch.testing.assert_close(total, expected)
    parameters = site.trainable_parameters()
    whole = torch.autograd.grad(expected, parameters, allow_unused=True)
    task.start_round(5)
    torch.testing.assert_close(task.backward(batch), expected.detach())
    for parameter, gradient in zip(parameters, whole, strict=True):
        if gradient is not None:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, gradient)


def test_measuring_stops_between_batches_and_can_be_repeated(participate: Make) -> None:
    """Asked before each batch of answers, of captions and of pictures."""
    site = participate(batch_size=2)
    start = site.prepare(go).initial
    asked: list[int] = []

    def later(limit: int) -> bool:
        asked.append(limit)
        return len(asked) > limit

    whole = site.evaluate(start, lambda: later(1000)).metrics
    num_asked = len(asked)
    assert num_asked >= 2 * (2 + 1 + 1)  # four questions, two captions, a prompt; untouched too
    for limit in (0, 1, num_asked // 2 - 1):
        asked.clear()
        with pytest.raises(TrainingStopped):
            site.evaluate(start, lambda limit=limit: later(limit))
    again = site.evaluate(start).metrics
    assert again == {name: value for name, value in whole.items() if "zero_shot" not in name}


@pytest.mark.parametrize("train", [{"vqa": VQA}, {"captions": CAPTIONS}])
def test_a_site_with_one_task(participate: Make, train: dict[str, Any]) -> None:
    site = participate(train)
    start = site.prepare(go).initial
    metrics = site.evaluate(start).metrics
    assert ("vqa_accuracy" in metrics) == ("vqa" in train)
    assert ("generation_loss" in metrics) == ("captions" in train)
    trained = site.train(start, 0, go).metrics
    assert "task_cosine" not in trained
    assert ("loss_generation" in trained) == ("captions" in train)


def test_the_same_round_twice_is_the_same_to_the_bit(participate: Make) -> None:
    site = participate(keep_optimizer=False)
    start = site.prepare(go).initial
    one, other = (site.train(start, 3, go) for _ in range(2))
    assert all(torch.equal(one.tensors[n], other.tensors[n]) for n in one.tensors)
    next_round = site.train(start, 4, go).tensors
    assert any(not torch.equal(one.tensors[n], next_round[n]) for n in next_round)


def test_routed_tasks_move_their_own_directions_and_are_exported_apart(
    participate: Make, models: Path
) -> None:
    routing = {"understanding": 1, "generation": 1}
    training = {"learning_rate": 1e-2, "batch_size": 4, "local_epochs": 1, "weight_decay": 0.5}
    site = participate({"vqa": VQA}, tasks={"routing": routing}, training=training)
    start = site.prepare(go).initial
    sent = site.train(start, 0, go).tensors
    for name, value in sent.items():
        rows = value if "lora_A" in name else value.T
        before = start[name] if "lora_A" in name else start[name].T
        torch.testing.assert_close(rows[1], before[1], atol=0, rtol=0)
    assert any(not torch.equal(sent[name], start[name]) for name in sent)
    site.finish(sent)
    task = task_of(site)
    assert task.validation.understanding is not None
    batch = task.validation.understanding.batch_at(torch.tensor([0, 1]))
    asked = (batch.image_tokens, batch.prompts, batch.answers)
    with task._only("understanding"), torch.no_grad():
        expected = task._backbone.loss(*asked)
    base = load_backbone(BackboneConfig("blip3o-tiny", str(models / "blip3o-tiny")))
    folder = site.state_dir / EXPORT_FOLDER / "understanding"
    PeftModel.from_pretrained(base.model, str(folder)).eval()
    with torch.no_grad():
        torch.testing.assert_close(base.loss(*asked), expected, atol=1e-6, rtol=1e-5)
    assert (site.state_dir / EXPORT_FOLDER / "generation" / "adapter_config.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {"routing": {"understanding": 2}}}, "routing needs understanding and generat"),
        ({"tasks": {"routing": {"understanding": 2, "generation": 2}}}, "add up to lora.rank, 2"),
        (
            {
                "tasks": {"routing": {"understanding": 1, "generation": 1}},
                "aggregation": {"mode": "svd"},
            },
            "mode svd mixes or cuts",
        ),
        ({"tasks": {"generation_weight": 0.0}}, "generation_weight must be > 0"),
        ({"judge": None}, "has `prompts`, but the job has no `judge`"),
        ({"guidance": 0.5}, "guidance must be > 1"),
    ],
)
def test_wrong_jobs(participate: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        participate(**changes).prepare(go)


def test_a_backbone_that_cannot_draw_is_refused_where_it_must(
    participate: Make, models: Path
) -> None:
    florence = {"model": "florence2-tiny", "weights": str(models / "florence2-tiny")}
    with pytest.raises(ConfigError, match="cannot draw, but this site has captions"):
        participate(backbone=florence).prepare(go)


def test_captions_and_prompts_that_are_too_long_are_left_out_or_refused(
    participate: Make, tmp_path: Path
) -> None:
    site = participate()
    folder = tmp_path / "data" / "site-1"
    rows = (folder / "captions.jsonl").read_text().splitlines()
    long = json.loads(rows[0]) | {"caption": "dog " * 60}
    (folder / "captions.jsonl").write_text("\n".join([json.dumps(long), *rows[1:]]))
    with pytest.raises(ValueError, match=r"1 of \d captions are too long: the model takes 24"):
        site.prepare(go)
    (folder / "captions.jsonl").write_text("\n".join(rows))
    prompt = json.loads((folder / "prompts.jsonl").read_text()) | {"prompt": "dog " * 60}
    (folder / "prompts.jsonl").write_text(json.dumps(prompt))
    with pytest.raises(ConfigError, match="1 of 1 `prompts` are too long"):
        participate_again(site).prepare(go)


def participate_again(site: LoraParticipant) -> LoraParticipant:
    """The same site anew, its files as they are now."""
    return LoraParticipant(
        site.job, site._load_backbone, site._build_task, site.site, "site-1", site.state_dir
    )


def test_a_site_without_prompts_needs_no_judge(
    participate: Make, models: Path, tmp_path: Path
) -> None:
    nowhere = {"judge": {"weights": str(tmp_path / "nowhere")}}
    with pytest.raises(BackboneError, match="no such folder"):
        participate({"vqa": VQA}, **nowhere).prepare(go)
    path = tmp_path / "data" / "site-1" / "vltune_site.yaml"
    content = yaml.safe_load(path.read_text())
    del content["validation"]["prompts"], content["test"]
    path.write_text(yaml.safe_dump(content))
    job = make_job(models, **nowhere)
    del job["federation"]
    site = build_participant(job, read_site_config(path), "site-1", tmp_path / "state", 1)
    handshake = site.prepare(go)
    assert "judge" not in handshake.facts
    assert "geneval" not in site.evaluate(handshake.initial).metrics


def test_half_of_the_sites_answer_and_half_draw(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("answers", "draws")
    for number, (name, train) in enumerate(
        zip(names, ({"vqa": VQA}, {"captions": CAPTIONS}), strict=True)
    ):
        write_site(tmp_path / "data", name, train, start=100 * number)
    monkeypatch.setenv("VLTUNE_SITE_CONFIG", str(tmp_path / "data" / "{site}" / "vltune_site.yaml"))
    output = run_in_process(make_job(models), names, tmp_path / "run")
    state = json.loads((output / "rounds.json").read_text())
    assert state["status"] == "completed"
    lines = [json.loads(text) for text in (output / "metrics.jsonl").read_text().splitlines()]
    told = {(line.get("site"), line.get("metric")) for line in lines}
    assert ("answers", "vqa_accuracy") in told
    assert ("draws", "vqa_accuracy") not in told
    assert ("draws", "generation_loss") in told
    assert ("draws", "test_geneval") in told


@pytest.mark.parametrize("mode", ["ffa", "fedsa", "plora", "svd", "fedex", "stack", "hetlora"])
def test_every_aggregation_mode(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    names = ("site-1", "site-2")
    for number, name in enumerate(names):
        write_site(tmp_path / "data", name, BOTH, start=100 * number)
    monkeypatch.setenv("VLTUNE_SITE_CONFIG", str(tmp_path / "data" / "{site}" / "vltune_site.yaml"))
    job = make_job(models, aggregation={"mode": mode}, judge={"weights": str(models / "judge")})
    output = run_in_process(job, names, tmp_path / "run")
    assert json.loads((output / "rounds.json").read_text())["status"] == "completed"
