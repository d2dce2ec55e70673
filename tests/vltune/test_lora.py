import copy
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import (
    Florence2Config,
    Florence2ForConditionalGeneration,
    JanusConfig,
    JanusForConditionalGeneration,
)

from vltune.lora import (
    add_lora,
    read_factors,
    seeded_a,
    set_residual,
    target_modules,
    train_factors,
    write_factors,
)
from vltune.lora_aggregation import aggregate
from vltune.lora_factors import LoraError, LoraSettings, factor_name, pair_factors
from vltune.lora_modes import LoraAggregation
from vltune.lora_residual import read_residual
from vltune.parameters import ParameterError

FLORENCE_TARGET = r"model\.language_model\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
LANGUAGE = r"model\.language_model\."


class Toy(nn.Module):
    """Two towers of distinct prime sizes: 5 -> 7 -> 11, and one that must not be touched."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 11))
        self.vision = nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.text(x)
        return output


def toy() -> Toy:
    torch.manual_seed(0)
    return Toy()


def settings(**changes: Any) -> LoraSettings:
    return LoraSettings(**{"rank": 3, "alpha": 6.0, "target": r"text\.\d", **changes})


TOY = LoraSettings(3, 6.0, r"text\.(0|2)")


def lora_toy(seed: int = 1) -> PeftModel:
    return add_lora(toy(), TOY, seed, allowed="text")


def moved(seed: int) -> dict[str, Tensor]:
    """Factors of a site that has trained: no zeros."""
    generator = torch.Generator().manual_seed(seed)
    start = read_factors(lora_toy())
    return {name: torch.randn(value.shape, generator=generator) for name, value in start.items()}


def tiny_florence() -> Florence2ForConditionalGeneration:
    torch.manual_seed(0)
    vision = {"embed_dim": [16] * 4, "num_heads": [2] * 4, "num_groups": [2] * 4}
    text = {"model_type": "bart", "d_model": 32, "vocab_size": 60, "max_position_embeddings": 64}
    for side in ("encoder", "decoder"):
        text |= {f"{side}_layers": 1, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 64}
    config = Florence2Config(
        vision_config={
            **vision,
            "depths": [1] * 4,
            "window_size": 4,
            "projection_dim": 32,
            "max_position_embeddings": 8,
            "max_temporal_embeddings": 4,
        },
        text_config=text,
        image_token_id=59,
    )
    return Florence2ForConditionalGeneration(config).eval()


def tiny_janus() -> JanusForConditionalGeneration:
    torch.manual_seed(0)
    width = {"projection_dim": 16, "num_hidden_layers": 1}
    config = JanusConfig(
        vision_config={**width, "hidden_size": 16, "num_attention_heads": 2, "image_size": 16},
        vq_config={**width, "base_channels": 32, "channel_multiplier": [1], "num_embeddings": 8},
        text_config={
            "model_type": "llama",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 32,
        },
    )
    return JanusForConditionalGeneration(config)


# The start ---------------------------------------------------------------------------------------


def test_start_is_the_base_model_and_only_factors_train() -> None:
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(3))
    expected = toy()(x)
    model = lora_toy()
    assert torch.equal(model(x), expected)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained == {
        f"base_model.model.text.{i}.lora_{kind}.default.weight" for i in (0, 2) for kind in "AB"
    }


def test_names_are_pefts() -> None:
    model = lora_toy()
    named = read_factors(model)
    theirs = get_peft_model_state_dict(model, save_embedding_layers=False)
    assert list(named) == sorted(theirs)
    assert all(torch.equal(named[name], theirs[name]) for name in named)
    assert {name: tuple(value.shape) for name, value in named.items()} == {
        factor_name("text.0", "A"): (3, 5),
        factor_name("text.0", "B"): (7, 3),
        factor_name("text.2", "A"): (3, 7),
        factor_name("text.2", "B"): (11, 3),
    }


def test_start_depends_on_seed_and_name_only() -> None:
    """Other random state, and another target around it, give the same A; another seed does not."""
    first = read_factors(lora_toy())
    torch.manual_seed(123)
    base = toy()
    torch.manual_seed(456)
    state = torch.get_rng_state()
    alone = read_factors(add_lora(base, settings(target=r"text\.2"), 1, allowed="text"))
    assert torch.equal(torch.get_rng_state(), state)
    name = factor_name("text.2", "A")
    assert torch.equal(first[name], alone[name])
    assert not torch.equal(first[name], read_factors(lora_toy(seed=2))[name])
    assert not first[factor_name("text.2", "B")].any()
    assert not torch.equal(seeded_a(1, "a", 3, 7), seeded_a(1, "b", 3, 7))


def test_start_is_pefts_distribution_and_ranks_nest() -> None:
    """Uniform in +-1/sqrt(D_in): standard deviation 1/sqrt(3 D_in)."""
    values = seeded_a(0, "m", 200, 400)
    assert float(values.abs().max()) <= 0.05
    assert float(values.std()) == pytest.approx(0.05 / 3**0.5, rel=0.01)
    assert torch.equal(seeded_a(0, "m", 7, 400), values[:7])


# Factors in and out ------------------------------------------------------------------------------


def test_read_factors_are_no_aliases() -> None:
    model = lora_toy()
    for value in read_factors(model).values():
        value.fill_(9.0)
    assert not any((value == 9.0).any() for value in read_factors(model).values())


def test_write_and_read_back_one_kind() -> None:
    model, new = lora_toy(), moved(4)
    before = read_factors(model, ("A",))
    only_b = {name: value for name, value in new.items() if "lora_B" in name}
    write_factors(model, only_b, ("B",))
    assert all(torch.equal(v, only_b[n]) for n, v in read_factors(model, ("B",)).items())
    assert all(torch.equal(v, before[n]) for n, v in read_factors(model, ("A",)).items())


def test_wrong_factors_are_refused_and_nothing_is_written() -> None:
    model, new = lora_toy(), moved(4)
    before = read_factors(model)
    name = factor_name("text.2", "B")
    missing = {n: v for n, v in new.items() if n != name}
    wrong: list[tuple[dict[str, Tensor], str]] = [
        (missing, "missing: .*text.2.lora_B"),
        ({**new, "base_model.model.text.2.lora_B.default.weight": new[name]}, "unknown: .*default"),
        ({**new, name: new[name].T.contiguous()}, r"expected shape \(11, 3\), got \(3, 11\)"),
        ({**new, name: new[name] * torch.nan}, "NaN"),
    ]
    for tensors, message in wrong:
        with pytest.raises(ParameterError, match=message):
            write_factors(model, tensors)
    with pytest.raises(ParameterError, match=r"unknown: .*lora_A"):
        write_factors(model, new, ("B",))
    assert all(torch.equal(value, before[n]) for n, value in read_factors(model).items())


def test_ffa_freezes_a_and_again_after_set_adapter() -> None:
    model = lora_toy()
    train_factors(model, ("B",))
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        f"base_model.model.text.{i}.lora_B.default.weight" for i in (0, 2)
    }
    model.set_adapter("default")
    assert any(p.requires_grad for n, p in model.named_parameters() if "lora_A" in n)
    train_factors(model, ("B",))
    model(torch.ones(2, 5)).sum().backward()
    assert all(p.grad is None for n, p in model.named_parameters() if "lora_A" in n)
    assert any(p.grad is not None for n, p in model.named_parameters() if "lora_B" in n)


def test_a_model_without_lora() -> None:
    with pytest.raises(LoraError, match="call add_lora first"):
        read_factors(toy())  # type: ignore[arg-type] # that is the point
    model = lora_toy()
    model.add_adapter("other", model.peft_config["default"])
    with pytest.raises(LoraError, match="is not a factor of adapter 'default'"):
        read_factors(model)


# Agreement with the dense computation ------------------------------------------------------------


def dense_toy(delta: dict[str, Tensor]) -> Toy:
    """W0 + alpha / r * delta, written into the weights; alpha / r = 2."""
    model = toy().double()
    with torch.no_grad():
        for module, value in delta.items():
            model.get_submodule(module).weight.add_(2.0 * value)  # type: ignore[operator] # a tensor
    return model


@pytest.mark.parametrize("mode", ["fedavg", "svd", "hetlora"])
def test_outputs_are_those_of_the_aggregated_weights(mode: Any) -> None:
    start = read_factors(lora_toy())
    updates = {"a": moved(1), "b": moved(2)}
    result = aggregate(LoraAggregation(mode), start, updates, {"a": 1, "b": 3})
    model, x = lora_toy(), torch.randn(13, 5, generator=torch.Generator().manual_seed(3))
    write_factors(model, result.tensors)
    pairs = pair_factors(result.tensors, "test")
    delta = {m: pair.b.double() @ pair.a.double() for m, pair in pairs.items()}
    assert torch.allclose(model(x).double(), dense_toy(delta)(x.double()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["fedex", "stack"])
def test_outputs_with_a_residual_are_those_of_the_mean_weights(mode: Any) -> None:
    """Two rounds, sites of unequal size: W = W0 + 2 (mean of B A + R), nothing else."""
    sent, residual, model = read_factors(lora_toy()), dict[str, Tensor](), lora_toy()
    x = torch.randn(13, 5, generator=torch.Generator().manual_seed(3))
    for round_number in range(2):
        updates = {site: moved(10 * round_number + i) for i, site in enumerate("ab")}
        old = read_residual(residual, "test")
        result = aggregate(LoraAggregation(mode), sent, updates, {"a": 1, "b": 3}, residual)
        delta = {}
        for module in ("text.0", "text.2"):
            a, b = (pair_factors(updates[site], site)[module] for site in "ab")
            delta[module] = (b.b.double() @ b.a.double()) * 0.75 + (a.b.double() @ a.a.double()) / 4
            if module in old:
                delta[module] += old[module].b.double() @ old[module].a.double()
        sent, residual = result.tensors, result.residual
        write_factors(model, sent)
        set_residual(model, residual, TOY)
        expected = dense_toy(delta)(x.double())
        assert torch.allclose(model(x).double(), expected, rtol=1e-4, atol=1e-4)


def test_residual_is_frozen_invisible_and_can_be_taken_away() -> None:
    model, x = lora_toy(), torch.ones(2, 5)
    before, state = model(x), set(model.state_dict())
    residual = {"base_model.model.text.0.residual.weight": torch.ones(7, 5)}
    set_residual(model, residual, TOY)
    with_residual = model(x)
    assert not torch.allclose(with_residual, before)
    set_residual(model, residual, TOY)
    assert torch.equal(model(x), with_residual)
    assert set(model.state_dict()) == state
    assert {n for n, p in model.named_parameters() if "residual" in n} == set()
    copied = copy.deepcopy(model)
    assert torch.equal(copied(x), with_residual)
    set_residual(model, {}, TOY)
    assert torch.equal(model(x), before)


def test_a_residual_that_does_not_fit() -> None:
    with pytest.raises(LoraError, match=r"without LoRA: \['vision'\]"):
        set_residual(lora_toy(), {"base_model.model.vision.residual.weight": torch.ones(7, 5)}, TOY)
    with pytest.raises(LoraError, match=r"residual of text.0: expected \(7, 5\), got \(5, 7\)"):
        set_residual(lora_toy(), {"base_model.model.text.0.residual.weight": torch.ones(5, 7)}, TOY)


# Targets -----------------------------------------------------------------------------------------


def test_a_target_that_hits_nothing_lists_what_is_there() -> None:
    with pytest.raises(LoraError, match=r"no whole name of a module; allowed .*: text.0, text.2$"):
        add_lora(toy(), settings(target="q_proj"), 0, allowed="text")


def test_a_target_outside_the_allowed_part() -> None:
    with pytest.raises(LoraError, match=r"hits 1 of 3 modules outside 'text': vision\."):
        add_lora(toy(), settings(target=r"text\.(0|2)|vision"), 0, allowed="text")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "text.1 is Tanh, expected Linear"),
        ({"target": "text"}, "text is Sequential, expected Linear"),
        ({"target": r"text\.0", "rank": 6}, r"rank 6 exceeds text.0 \(7 x 5\)"),
    ],
)
def test_modules_that_cannot_have_lora(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LoraError, match=message):
        add_lora(toy(), settings(**change), 0, allowed="text")


@pytest.mark.parametrize("target", ["attn", r"attn\.out_proj"])
def test_multihead_attention_is_refused(target: str) -> None:
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2)})
    with pytest.raises(LoraError, match=f"{target} belongs to nn.MultiheadAttention"):
        add_lora(model, settings(target=target), 0, allowed="attn")


def test_tied_modules_are_refused() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(13, 7), "head": nn.Linear(7, 13, bias=False)})
    model["head"].weight = model["embed"].weight
    for name, other in (("head", "embed"), ("embed", "head")):
        with pytest.raises(LoraError, match=f"{name} shares its weight with {other}"):
            add_lora(model, settings(target=name), 0, allowed="")
    free = nn.ModuleDict({"embed": nn.Embedding(13, 7)})
    with pytest.raises(LoraError, match="embed is Embedding, expected Linear"):
        add_lora(free, settings(target="embed"), 0, allowed="")


def test_lora_is_put_on_once() -> None:
    base = toy()
    model = add_lora(base, TOY, 0, allowed="text")
    for twice in (model, base):
        with pytest.raises(LoraError, match="has LoRA already"):
            add_lora(twice, TOY, 0, allowed="text")


def test_florence_target_hits_the_language_model_only() -> None:
    """Encoder layer: 4 + 2; decoder layer: 4 + 4 + 2."""
    modules = target_modules(tiny_florence(), LoraSettings(2, 4, FLORENCE_TARGET), allowed=LANGUAGE)
    assert len(modules) == 16
    assert all(name.startswith("model.language_model.") for name in modules)


def test_bare_names_also_hit_florences_vision_tower() -> None:
    """DaViT's attention has fused names, its feed-forward layers have those of BART."""
    with pytest.raises(LoraError, match=r"hits 16 of 20 modules outside .*model\.vision_tower"):
        target_modules(tiny_florence(), LoraSettings(2, 4, r".*\.(fc1|fc2)"), allowed=LANGUAGE)


def test_florence_tied_head_is_refused() -> None:
    with pytest.raises(LoraError, match=r"lm_head shares its weight with model\.language_model"):
        target_modules(tiny_florence(), LoraSettings(2, 4, "lm_head"), allowed="")


def test_bare_q_proj_also_hits_janus_vision_tower() -> None:
    with pytest.raises(LoraError, match=r"hits \d+ of \d+ modules outside .*vision_model.*q_proj"):
        target_modules(tiny_janus(), LoraSettings(2, 4, r".*\.q_proj"), allowed=LANGUAGE)


def test_florence_trains_lora() -> None:
    model = add_lora(tiny_florence(), LoraSettings(2, 4, FLORENCE_TARGET), 0, allowed=LANGUAGE)
    tokens = torch.tensor([[0, 7, 8, 2]])
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert len(grads) == 32
    assert all(g is not None and g.abs().sum() > 0 for n, g in grads.items() if "lora_B" in n)
