import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from vltune.algorithms.encoded_split import FeatureBatch
from vltune.algorithms.fedmpt import FedMPT, FedMPTConfig, LossConfig
from vltune.backbones.clip import ClipBackbone
from vltune.config import ConfigError, from_mapping
from vltune.losses import asymmetric_loss
from vltune.optimal_transport import TransportConfig
from vltune.parameters import Ownership, ownership_of, shared_state
from vltune.prompts import condition_text_features

# K=3 conditions of one and of several tokens, C=7 classes; the tiny CLIP has D=11 and M=15.
CONDITIONS = ("scene type", "lighting", "spatial layout of objects")
CLASSNAMES = ("cat", "wine glass", "sports ball", "dog", "car", "teddy bear", "zebra")
B, K, C, D, M = 2, 3, 7, 11, 15

# The rows of the paper's ablation, and every value of the transport.
PARTS_OFF = {"prompts": False, "adapters": False, "use_transport": False, "gate": False}
ABLATIONS: dict[str, dict[str, Any]] = {
    "prompts only": PARTS_OFF | {"prompts": True},
    "adapters only": PARTS_OFF | {"adapters": True},
    "both": PARTS_OFF | {"prompts": True, "adapters": True},
    "both, transport": {"gate": False},
    "both, transport, gate": {},
    "both, gate": {"use_transport": False},
    "gate sees psi": {"gate_input": "image_and_psi"},
    "marginal uniform": {"transport": {"marginal": "uniform"}},
    "cost cosine": {"transport": {"cost": "cosine"}},
    "relaxed": {"transport": {"relaxation": 0.5}},
    "relaxed, cosine": {"transport": {"relaxation": 0.5, "cost": "cosine"}},
    "plan gradient unrolled": {"transport": {"plan_gradient": "unrolled"}},
    "solver log": {"transport": {"solver": "log", "max_iter": 20}},
}

Build = Callable[..., FedMPT]


@pytest.fixture
def build(tiny_clip: ClipBackbone) -> Build:
    """Build a model on the tiny CLIP; keywords are the job's `model:`."""

    def make(seed: int = 34, **model: Any) -> FedMPT:
        config = from_mapping(FedMPTConfig, {"rank": 5, "gate_rank": 2} | model, "the job's model")
        return FedMPT(config, tiny_clip, CONDITIONS, CLASSNAMES, seed)

    return make


def make_batch(size: int = B, seed: int = 0) -> FeatureBatch:
    generator = torch.Generator().manual_seed(seed)
    patches = F.normalize(torch.randn(size, M, D, generator=generator), dim=-1)
    labels = torch.randint(-1, 2, (size, C), generator=generator)
    return FeatureBatch(patches, F.normalize(patches.mean(dim=1), dim=-1), labels)


def train(model: FedMPT, batch: FeatureBatch, steps: int = 8) -> list[float]:
    optimizer = torch.optim.AdamW(model.trainable_parameters(), 0.03, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        loss = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_learns(build: Build, name: str) -> None:
    model = build(**ABLATIONS[name])
    before = shared_state(model, model.shared_keys())
    losses = train(model, make_batch(5))
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < 0.98 * losses[0], losses
    after = shared_state(model, model.shared_keys())
    still = {key for key in after if torch.equal(after[key], before[key])}
    assert not still, f"nothing trains {still}"


@pytest.mark.parametrize("name", ABLATIONS)
def test_shapes(build: Build, name: str) -> None:
    model = build(**ABLATIONS[name])
    batch = make_batch()
    output = model(batch.patch_features, batch.image_features)
    assert model.text_features().shape == (K, C, D)
    assert output.logits.shape == (B, C)
    assert output.condition_logits.shape == (B, K, C)
    assert output.gate.shape == (B, K)
    assert (output.plan is not None) == model.config.use_transport
    if output.plan is not None:
        assert output.plan.plan.shape == (B, K, M, C)
        assert output.plan.converged.shape == (B, K)
        torch.testing.assert_close(output.plan.plan.sum(dim=(-2, -1)), torch.ones(B, K))


def test_the_state_is_shared_and_holds_the_four_parts(build: Build) -> None:
    # u (K, Lcond, W), w (Lcls, W); down and up of adapters (rank 5) and gate (rank 2); head.
    model = build(condition_length=2, class_length=3)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes == {
        "prompts.ctx_condition": (K, 2, 20),
        "prompts.ctx_class": (3, 20),
        "adapters.down": (K, D, 5),
        "adapters.up": (K, 5, D),
        "gate.down": (D, 2),
        "gate.up": (2, K),
        "head_scale": (),
        "head_bias": (),
    }


@pytest.mark.parametrize("name", ABLATIONS)
def test_all_of_the_state_is_shared_and_trained(build: Build, name: str) -> None:
    model = build(**ABLATIONS[name])
    assert model.shared_keys() == set(model.state_dict())
    assert set(ownership_of(model, model.shared_keys()).values()) == {Ownership.SHARED}
    assert {id(p) for p in model.trainable_parameters()} == {id(p) for p in model.parameters()}


def test_the_seed_alone_decides_the_initial_tensors(build: Build) -> None:
    torch.manual_seed(1)
    first = build(seed=34).state_dict()
    torch.manual_seed(2)
    again, other = build(seed=34).state_dict(), build(seed=35).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    random = {"prompts.ctx_condition", "prompts.ctx_class", "adapters.down", "gate.down"}
    assert {key for key in first if not torch.equal(first[key], other[key])} == random


def test_the_towers_are_frozen_and_stay_out_of_the_state(
    build: Build, tiny_clip: ClipBackbone
) -> None:
    before = {key: value.clone() for key, value in tiny_clip.model.state_dict().items()}
    model = build()
    train(model, make_batch(), steps=2)
    assert all(p.grad is None and not p.requires_grad for p in tiny_clip.model.parameters())
    assert all(torch.equal(before[k], v) for k, v in tiny_clip.model.state_dict().items())
    trained = {id(p) for p in model.parameters()}
    assert not trained & {id(p) for p in tiny_clip.model.parameters()}
    frozen = build(prompts=False)
    assert "frozen_text" not in frozen.state_dict()
    assert not frozen.get_buffer("frozen_text").requires_grad


def test_unknown_labels_have_no_loss_and_no_gradient(build: Build) -> None:
    batch = make_batch()
    nothing_known = batch._replace(labels=torch.full((B, C), -1))
    model = build()
    model.loss(nothing_known).backward()
    assert model.loss(nothing_known).item() == 0
    assert all(not p.grad.any() for p in model.parameters())
    labels = batch.labels.clone()
    labels[:, 3] = -1
    others = [0, 1, 2, 4, 5, 6]
    logits = model(batch.patch_features, batch.image_features).logits
    torch.testing.assert_close(
        model.loss(batch._replace(labels=labels)),
        asymmetric_loss(logits[:, others], labels[:, others]),
    )


def test_the_loss_is_the_asymmetric_loss_of_the_logits(build: Build) -> None:
    """With gamma 0 and clip 0 it is the cross entropy of known labels, summed, over B images."""
    batch = make_batch()
    model = build(loss={"gamma_neg": 0, "gamma_pos": 0, "clip": 0})
    logits = model(batch.patch_features, batch.image_features).logits
    known = batch.labels >= 0
    wanted = F.binary_cross_entropy_with_logits(
        logits[known], batch.labels[known].float(), reduction="sum"
    )
    torch.testing.assert_close(model.loss(batch), wanted / B)


@pytest.mark.parametrize("gate", [True, False])
def test_the_gate_starts_uniform(build: Build, gate: bool) -> None:
    batch = make_batch()
    output = build(gate=gate)(batch.patch_features, batch.image_features)
    assert torch.equal(output.gate, torch.full((B, K), 1 / K))
    torch.testing.assert_close(output.logits, output.condition_logits.mean(dim=1))


def test_a_trained_gate_weighs_the_conditions(build: Build) -> None:
    batch = make_batch()
    model = build()
    with torch.no_grad():
        model.gate.up.copy_(torch.randn(2, K, generator=torch.Generator().manual_seed(1)))
    output = model(batch.patch_features, batch.image_features)
    torch.testing.assert_close(output.gate.sum(dim=1), torch.ones(B))
    assert not torch.allclose(output.gate[0], output.gate[1])
    wanted = sum(output.gate[:, k, None] * output.condition_logits[:, k] for k in range(K))
    torch.testing.assert_close(output.logits, wanted)


@pytest.mark.parametrize("name", ["both, transport, gate", "adapters only", "gate sees psi"])
def test_texts_encoded_before_give_the_same_predictions(build: Build, name: str) -> None:
    batch = make_batch()
    model = build(**ABLATIONS[name])
    train(model, batch, steps=2)
    with torch.no_grad():
        plain = model(batch.patch_features, batch.image_features)
        given = model(batch.patch_features, batch.image_features, model.text_features())
        predicted = model.predictor()(batch.patch_features, batch.image_features)
    assert torch.equal(given.logits, plain.logits)
    assert torch.equal(given.condition_logits, plain.condition_logits)
    assert torch.equal(predicted, plain.logits)


def test_training_starts_at_the_patch_reading(build: Build, tiny_clip: ClipBackbone) -> None:
    """Zero `up`: the adapters change nothing, and contexts start beside "a photo of a"."""
    batch = make_batch()
    frozen = condition_text_features(tiny_clip, CONDITIONS, CLASSNAMES)
    model = build(prompts=False)
    assert torch.equal(model.text_features(), frozen)
    assert not model.adapters.up.any()
    cosines = torch.einsum("bmd,kcd->bkmc", batch.patch_features, frozen)
    similarity = model.adapters.cosine_similarity(batch.patch_features, frozen)
    torch.testing.assert_close(similarity, cosines, rtol=0, atol=5e-7)
    without = build(prompts=False, adapters=False)
    torch.testing.assert_close(
        model(batch.patch_features, batch.image_features).logits,
        without(batch.patch_features, batch.image_features).logits,
        rtol=0,
        atol=1e-5,
    )
    learnt = build().text_features()
    assert ((learnt * frozen).sum(dim=-1) > 0.99).all()


def test_initial_scores_rank_as_the_softly_pooled_patches(
    build: Build, tiny_clip: ClipBackbone
) -> None:
    """Without transport psi = sum_m softmax_m(scale s) s, and the head keeps its order."""
    batch = make_batch()
    model = build(prompts=False, use_transport=False)
    text = condition_text_features(tiny_clip, CONDITIONS, CLASSNAMES)
    for image in range(B):
        for k in range(K):
            cosines = batch.patch_features[image] @ text[k].T  # (M, C)
            weights = (tiny_clip.logit_scale * cosines).softmax(dim=0)
            psi = (weights * cosines).sum(dim=0)
            output = model(batch.patch_features, batch.image_features)
            wanted = 10.0 * psi - 4.0
            torch.testing.assert_close(output.condition_logits[image, k], wanted, rtol=0, atol=1e-5)


def test_images_do_not_see_each_other(build: Build) -> None:
    model = build()
    batch = make_batch(5)
    whole = model(batch.patch_features, batch.image_features).logits
    rows = [
        model(batch.patch_features[i : i + 1], batch.image_features[i : i + 1]).logits
        for i in range(5)
    ]
    # The solver stops when the whole batch has converged, at an L1 error of 1e-4 times C.
    torch.testing.assert_close(torch.cat(rows), whole, rtol=0, atol=10 * C * 1e-4)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"variant": "improvd"}, "expected one of paper"),
        ({"rank": 0}, "rank"),
        ({"gate_rank": 0}, "gate_rank"),
        ({"condition_length": 0}, "condition_length"),
        ({"adapter_rank": 4}, "unknown key adapter_rank"),
        (PARTS_OFF, "only the head"),
        (PARTS_OFF | {"use_transport": True}, "only the head"),
        ({"prompts": "yes"}, "expected bool"),
        ({"gate_input": "psi"}, "expected one of"),
        ({"head_scale": 0.0}, "head_scale"),
        ({"head_scale": -1}, "head_scale"),
        ({"loss": {"clip": 1.0}}, "clip"),
        ({"loss": {"gamma_neg": -1}}, "gamma_neg"),
        ({"transport": {"epsilon": 0}}, "epsilon"),
        ({"transport": {"marginal": "gaussian"}}, "expected one of"),
        ({"transport": {"plan_gradient": True}}, "expected one of"),
    ],
)
def test_a_wrong_configuration_is_refused(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(FedMPTConfig, mapping, "the job's model")


def test_defaults_are_those_of_the_paper() -> None:
    """L_cond = L_cls = 4, D_s = 32, lambda = 0.2, tau = 4 and ASL (2, 1, 0.05)."""
    config = FedMPTConfig()
    assert (config.condition_length, config.class_length, config.rank) == (4, 4, 32)
    assert (config.transport.epsilon, config.transport.tau) == (0.2, 4.0)
    assert config.transport == TransportConfig(marginal="informative", cost="softmax")
    assert config.loss == LossConfig(2.0, 1.0, 0.05)
