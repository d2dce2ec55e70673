"""FedVLM on a tiny random Florence-2: what is trained, what is kept, what leaves."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nvflare.apis.shareable import Shareable
from nvflare.fuel.utils import fobs
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1]))

from answer_sites import make_job, write_site
from tiny_florence import write_tiny_florence

from vltune.algorithms.fedvlm import build_participant, dpo_loss
from vltune.algorithms.lora_site import EXPORT_FOLDER, LoraParticipant
from vltune.backbones.checkpoint import BackboneConfig, BackboneError
from vltune.backbones.florence2 import load_florence2
from vltune.config import ConfigError
from vltune.flare.persistor import LAST_FILE, read_adapter
from vltune.lora import read_factors
from vltune.lora_factors import parse_factor_name
from vltune.site_config import read_site_config
from vltune.training import DivergedError
from vltune_lab.jobs.in_process import run_in_process

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]
torch.set_num_threads(1)
MODES = ("fedavg", "ffa", "fedsa", "plora", "svd", "fedex", "stack", "hetlora")

Make = Callable[..., LoraParticipant]


def go() -> bool:
    return False


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_florence(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def participate(tmp_path: Path, weights: Path) -> Make:
    def make(name: str = "site-1", data: str = "preference", **changes: Any) -> LoraParticipant:
        folder = tmp_path / "data" / name
        if not folder.exists():
            write_site(tmp_path / "data", name, data=data)
        state = tmp_path / "state" / name
        state.mkdir(parents=True, exist_ok=True)
        site = read_site_config(folder / "vltune_site.yaml")
        return build_participant(make_job(weights, **changes), site, name, state, 1)

    return make


def kinds_of(tensors: dict[str, Tensor]) -> set[str]:
    return {parse_factor_name(name)[1] for name in tensors}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_only_b_leaves_and_a_is_trained_and_kept(participate: Make) -> None:
    site = participate()
    shake = site.prepare(go)
    assert kinds_of(shake.initial) == {"B"}
    assert not any(value.any() for value in shake.initial.values())
    before = read_factors(site.lora.model, ("A",))
    assert site.personal_state() == {}
    update = site.train(shake.initial, 0, go)
    assert kinds_of(update.tensors) == {"B"}
    assert any(value.any() for value in update.tensors.values())
    kept = site.personal_state()
    after = {name: value for name, value in kept.items() if not name.startswith("optimizer.")}
    assert kinds_of(after) == {"A"}
    assert not same(before, after)
    assert any(name.startswith("optimizer.") and "lora_A" in name for name in kept)


def test_every_site_begins_with_the_same_a(participate: Make) -> None:
    one, other = participate("site-1"), participate("site-2")
    assert one.prepare(go).initial_hash == other.prepare(go).initial_hash
    assert same(read_factors(one.lora.model, ("A",)), read_factors(other.lora.model, ("A",)))


def test_what_ffa_freezes_stays_at_its_seeded_start(participate: Make) -> None:
    site = participate(aggregation={"mode": "ffa"})
    start = site.prepare(go).initial
    before = read_factors(site.lora.model, ("A",))
    site.evaluate(start)  # measures without LoRA, too
    site.train(start, 0, go)
    assert same(read_factors(site.lora.model, ("A",)), before)
    assert not any("lora_A" in name for name in site.personal_state())


def test_factors_that_the_last_step_broke_are_neither_kept_nor_sent(participate: Make) -> None:
    training = {"optimizer": "sgd", "learning_rate": 1e38, "batch_size": 64, "local_epochs": 1}
    site = participate(training=training)
    start = site.prepare(go).initial
    with pytest.raises(DivergedError):
        site.train({name: torch.full_like(v, 3e38) for name, v in start.items()}, 0, go)
    assert site.personal_state() == {}


def test_too_many_answer_tokens_are_refused_at_once(participate: Make) -> None:
    with pytest.raises(ConfigError, match="max_answer_tokens is 500, the model has 192 positions"):
        participate(max_answer_tokens=500).prepare(go)


def test_the_site_says_where_its_model_runs(participate: Make, tmp_path: Path) -> None:
    """A device that is not there stops the site, and never falls back to another."""
    write_site(tmp_path / "data", "site-1")
    path = tmp_path / "data" / "site-1" / "vltune_site.yaml"
    path.write_text(path.read_text() + "device: cuda:99\n")
    with pytest.raises(ConfigError, match=r"device is 'cuda:99'.*CUDA devices here"):
        participate().prepare(go)


def test_a_model_of_no_known_family_is_refused(participate: Make, weights: Path) -> None:
    site = participate(backbone={"model": "tiny", "weights": str(weights)})
    with pytest.raises(BackboneError, match="no vision-language backbone of this name"):
        site.prepare(go)


@pytest.mark.parametrize("mode", MODES)
def test_a_restarted_site_goes_on_bit_for_bit(participate: Make, mode: str) -> None:
    aggregation = {"mode": mode}
    whole = participate(aggregation=aggregation)
    start = whole.prepare(go).initial
    whole.evaluate(start)
    first = whole.train(start, 0, go)
    kept = {name: value.clone() for name, value in whole.personal_state().items()}
    whole.evaluate(first.tensors)
    second = whole.train(first.tensors, 1, go)
    again = participate(aggregation=aggregation)
    again.prepare(go)
    if kept:
        again.load_personal_state(kept)
    again.evaluate(first.tensors)
    resumed = again.train(first.tensors, 1, go)
    assert same(resumed.tensors, second.tensors)
    assert same(again.personal_state(), whole.personal_state())
    assert "steps_warm_up" not in resumed.metrics


def test_a_site_that_joins_late_warms_its_own_factor_up_first(participate: Make) -> None:
    shared = participate("site-1")
    start = shared.prepare(go).initial
    after = shared.train(start, 0, go).tensors
    late = participate("site-2")
    late.prepare(go)
    update = late.train(after, 3, go)
    assert update.metrics["steps_warm_up"] == 3  # 12 records in batches of 4
    without = participate("site-2", warm_up_epochs=0)
    without.prepare(go)
    assert not same(without.train(after, 3, go).tensors, update.tensors)
    assert "steps_warm_up" not in late.train(update.tensors, 4, go).metrics


def test_warm_up_moves_only_what_stays(participate: Make) -> None:
    site = participate()
    start = site.prepare(go).initial
    received = {name: torch.full_like(value, 0.01) for name, value in start.items()}
    site.lora.receive(received)
    site._warm_up(5, go)
    assert same(read_factors(site.lora.model, ("B",)), received)


def test_the_adapter_of_a_site_is_a_peft_folder_that_answers_as_the_site_does(
    participate: Make, weights: Path
) -> None:
    site = participate()
    start = site.prepare(go).initial
    shared = site.train(start, 0, go).tensors
    evaluation = site.evaluate(shared)
    site.finish(shared)
    rows = torch.arange(len(site.task.validation))
    batch = site.task.validation.batch_at(rows)
    base = load_florence2(BackboneConfig("tiny", str(weights)))
    unloaded = base.log_likelihood(batch.image_tokens, batch.prompts, batch.answers)
    loaded = PeftModel.from_pretrained(base.model, str(site.state_dir / EXPORT_FOLDER))
    loaded.eval()
    with torch.no_grad():
        wanted = site.backbone.log_likelihood(batch.image_tokens, batch.prompts, batch.answers)
        got = base.log_likelihood(batch.image_tokens, batch.prompts, batch.answers)
        answers = base.answer(batch.image_tokens, batch.prompts, max_tokens=4)
    assert torch.equal(got, wanted)
    assert not torch.allclose(got, unloaded)
    site.lora.model.eval()
    assert answers == site.backbone.answer(batch.image_tokens, batch.prompts, max_tokens=4)
    right = [a == r.answers[0] for a, r in zip(answers, site.task.validation.records, strict=True)]
    assert evaluation.metrics["accuracy"] == pytest.approx(sum(right) / len(right))


def test_an_evaluation_says_what_the_model_was_before(participate: Make) -> None:
    site = participate()
    start = site.prepare(go).initial
    first = site.evaluate(start).metrics
    assert first["zero_shot_accuracy"] == first["accuracy"]
    assert {"token_f1", "rouge_l", "preference_accuracy"} <= first.keys()
    assert "zero_shot_accuracy" not in site.evaluate(start).metrics


def test_dpo_loss_by_hand() -> None:
    """Margins 2 and -1 against 0 and 1: beta (2, -2), -log sigmoid, mean."""
    policy = torch.tensor([[-1.0, -3.0], [-4.0, -3.0]])
    reference = torch.tensor([[-2.0, -2.0], [-2.0, -3.0]])
    wanted = (math.log1p(math.exp(-0.2)) + math.log1p(math.exp(0.2))) / 2
    assert dpo_loss(policy, reference, 0.1).item() == pytest.approx(wanted)
    assert dpo_loss(reference, reference, 0.1).item() == pytest.approx(math.log(2))


def test_dpo_starts_at_log_2_and_learns_the_preference(participate: Make) -> None:
    objective = {"name": "dpo", "beta": 1.0}
    training = {"optimizer": "adamw", "learning_rate": 0.05, "batch_size": 4, "local_epochs": 6}
    site = participate(objective=objective, training=training)
    start = site.prepare(go).initial
    batch = site.task.train.batch_at(torch.arange(12))
    with torch.no_grad():
        assert site.loss(batch).item() == pytest.approx(math.log(2), abs=1e-6)
    before = site.evaluate(start).metrics["preference_accuracy"]
    shared = site.train(start, 0, go).tensors
    site.lora.model.eval()
    with torch.no_grad():
        assert site.loss(batch).item() < 0.6
    assert site.evaluate(shared).metrics["preference_accuracy"] >= before


def test_dpo_needs_rejected_answers(participate: Make) -> None:
    site = participate(data="captions", objective={"name": "dpo"})
    with pytest.raises(ConfigError, match="12 of 12 training records have no rejected answer"):
        site.prepare(go)


def test_plain_answers_are_enough_for_sft(participate: Make) -> None:
    site = participate(data="captions")
    start = site.prepare(go).initial
    assert "preference_accuracy" not in site.evaluate(start).metrics
    assert site.train(start, 0, go).num_examples == 12


@pytest.fixture
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Path) -> Any:
    """Run a job over three sites in this process; returns the server's folder and its state."""

    def run(folder: str = "run", names: tuple[str, ...] = ("site-1", "site-2"), **changes: Any):  # type: ignore[no-untyped-def]
        for name in names:
            if not (tmp_path / "data" / name).exists():
                write_site(tmp_path / "data", name)
        pattern = tmp_path / "data" / "{site}" / "vltune_site.yaml"
        monkeypatch.setenv("VLTUNE_SITE_CONFIG", str(pattern))
        output = run_in_process(make_job(weights, **changes), names, tmp_path / folder)
        return output, json.loads((output / "rounds.json").read_text())

    return run


@pytest.mark.parametrize("mode", MODES)
def test_a_federation_runs_in_every_mode(federation: Any, mode: str) -> None:
    _, state = federation(aggregation={"mode": mode})
    assert state["status"] == "completed"
    last = state["rounds"][-1]
    if mode != "stack":  # whose factors begin anew in each round
        assert last["loss"] < state["rounds"][1]["loss"]
    error = last.get("exactness_error")
    if mode in ("plora", "fedsa"):
        assert error is None
    elif mode in ("ffa", "fedex", "stack"):
        assert error == pytest.approx(0, abs=1e-6)
    else:
        assert 0 < error < 2
        assert set(last["exactness_by_module"]) == {
            parse_factor_name(name)[0] for name in state["shared"]
        }


def test_the_bytes_of_a_are_in_no_message(
    federation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every message between sites and server as FLARE serialises it; B is the positive control."""
    messages: list[bytes] = []

    def recorded(message: Shareable) -> Shareable:
        messages.append(fobs.dumps(message))
        return fobs.loads(messages[-1])

    monkeypatch.setattr("vltune_lab.jobs.in_process.over_the_wire", recorded)
    output, _ = federation()
    sent = read_adapter(output / LAST_FILE)[0]
    assert kinds_of(sent) == {"B"}
    shared = next(value for value in sent.values() if value.any())
    assert any(shared.numpy().tobytes() in message for message in messages)
    kept = [
        tensors
        for path in (tmp_path / "data").glob("*/vltune_state/*/*/personal_round*.safetensors")
        for tensors in [load_file(path)]
    ]
    assert len(kept) == 4  # two sites, two rounds
    for tensors in kept:
        for name, value in tensors.items():
            if value.ndim == 2 and value.shape[1] >= 8 and value.any():
                rows = [row.numpy().tobytes() for row in value if row.any()]
                assert not any(row in message for row in rows for message in messages), name


def test_plora_sends_half_of_what_fedavg_sends(participate: Make) -> None:
    """Attention is square, and fc1 and fc2 mirror each other, so A and B have equal sizes."""
    both = participate(aggregation={"mode": "fedavg"}).prepare(go).spec
    half = participate(aggregation={"mode": "plora"}).prepare(go).spec
    count = {name: math.prod(shape) for name, shape in both.items()}
    assert set(half) == {name for name in both if "lora_B" in name}
    assert 2 * sum(count[name] for name in half) == sum(count.values())


def test_with_partial_participation_each_site_warms_up_at_its_first_round(federation: Any) -> None:
    names = ("site-1", "site-2", "site-3")
    asked = make_job(Path("unused"))["federation"] | {"rounds": 6, "min_sites": 1}
    output, state = federation(names=names, federation=asked | {"participation": 0.3})
    lines = [json.loads(text) for text in (output / "metrics.jsonl").read_text().splitlines()]
    warm = {(r["site"], r["round"]) for r in lines if r.get("metric") == "steps_warm_up"}
    drawn = [(record["round"], record["sites"]) for record in state["rounds"][1:]]
    assert all(len(sites) == 1 for _, sites in drawn)
    first = {site: number for number, (site,) in reversed(drawn)}
    # Round N of the records is the training of task N - 1; the run's first site begins with it.
    assert warm == {(site, number) for site, number in first.items() if number > 1}
    assert warm


def test_a_site_of_lower_rank_takes_part(federation: Any, tmp_path: Path) -> None:
    folder = write_site(tmp_path / "data", "site-2")
    path = folder / "vltune_site.yaml"
    path.write_text(path.read_text() + "lora_rank: 1\n")
    for mode in ("svd", "hetlora", "stack"):
        _, state = federation(mode, aggregation={"mode": mode})
        sent = state["rounds"][-1]["bytes_up"]
        assert sent["site-2"] < sent["site-1"]
    with pytest.raises(ValueError, match="aggregation mode plora needs one rank"):
        federation("plora")
