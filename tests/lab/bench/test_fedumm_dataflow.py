"""The comparison with the dataflow of research/fedumm, from worlds to rows, on a few images."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.progress import Progress

from vltune.algorithms.fedumm import build_participant
from vltune.backbones.checkpoint import BackboneConfig
from vltune.site_config import read_site_config
from vltune_lab.bench.blip_start import QUICK, make_start
from vltune_lab.bench.fedumm_dataflow import METHODS, _job, make_world, run_fedumm_dataflow
from vltune_lab.bench.fedumm_runs import write_files
from vltune_lab.bench.published_fedumm import build_published, load_stock
from vltune_lab.bench.results import write_results

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Start and world of the quick benchmark."""
    return tmp_path_factory.mktemp("dataflow")


def go() -> bool:
    return False


def test_one_question_has_the_same_loss_in_both_dataflows(folder: Path, tmp_path: Path) -> None:
    """Alone in its batch a question has no padding; longer batches differ (docs/blip_vqa.md)."""
    weights = make_start(folder, QUICK)
    world = make_world(5, folder, quick=True)
    files = write_files(world, tmp_path, cache=tmp_path / "cache", can_draw=False)
    job = _job(weights, 5, (), quick=True)
    path = Path(str(files).replace("{site}", "site-1"))
    tasks: list[Any] = []
    for name, build in (("ours", build_participant), ("published", build_published)):
        state = tmp_path / name
        state.mkdir()
        participant = build(job, read_site_config(path), "site-1", state, 1)
        start = participant.prepare(go).initial
        participant.lora.receive(start)
        participant.lora.model.eval()
        tasks.append(participant.task)
    ours, published = tasks
    assert ours.num_examples == published.num_examples
    assert published.num_validation == ours.num_validation
    for row in range(4):
        index = torch.tensor([row])
        ours.start_round(0)
        losses = [task.loss(task.batch_at(index)).item() for task in tasks]
        # Kept image tokens are fp16.
        assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_the_stock_model_has_no_mask_of_padded_questions(folder: Path) -> None:
    weights = make_start(folder, QUICK)
    model: Any = load_stock(BackboneConfig("blip-vqa-start", str(weights)), "cpu").model
    layers = model.text_decoder.bert.encoder.layer
    assert not any(layer.crossattention.self._forward_pre_hooks for layer in layers)


def test_rows_of_all_methods(folder: Path, tmp_path: Path) -> None:
    with Progress(disable=True) as bars:
        rows = run_fedumm_dataflow([5], folder, bars, quick=True)
    assert [row["method"] for row in rows] == ["the start", *METHODS]
    published, fedavg, ffa = rows[1:]
    for row in (published, fedavg, ffa):
        assert row["cpu_seconds_round"] > 0
        assert row["peak_memory_mb"] > row["memory_before_mb"] > 0
    # The same names and shapes travel; ffa sends B alone.
    assert published["bytes_up"] == pytest.approx(fedavg["bytes_up"], rel=0.01)
    assert ffa["bytes_up"] < 0.7 * fedavg["bytes_up"]
    assert published["exactness_error"] is not None
    content = {"protocol": "fedumm-dataflow", "command": "c", "commit": "0", "hardware": "h"}
    write_results(tmp_path / "out.json", content | {"versions": {}, "rows": rows})
    with Progress(disable=True) as bars:
        assert run_fedumm_dataflow([5], folder, bars, quick=True) == rows  # from the journal
