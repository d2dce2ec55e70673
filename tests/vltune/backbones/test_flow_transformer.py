import math

import pytest
import torch

from vltune.backbones.blip3o_config import DecoderSettings, FlowSettings
from vltune.backbones.feature_decoder import FeatureDecoder
from vltune.backbones.flow_transformer import FlowAttention, FlowTransformer, sinusoids

# B=2, T=9, D=5, Q=3, C=7; two heads of 4.
SETTINGS = FlowSettings(width=8, depth=2, num_heads=2, ffn_width=11, modulation_width=6)


@pytest.fixture
def flow() -> FlowTransformer:
    torch.manual_seed(0)
    return FlowTransformer(SETTINGS, num_tokens=9, feature_width=5, condition_width=7)


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, 9, 5, generator=generator),
        torch.rand(2, generator=generator),
        torch.randn(2, 3, 7, generator=generator),
    )


def test_it_starts_at_zero_and_every_parameter_can_learn(flow: FlowTransformer) -> None:
    """Zero at the end; once that has moved, the zero modulations pass gradients to all others."""
    states, times, condition = inputs()
    assert torch.equal(flow(states, times, condition), torch.zeros(2, 9, 5))
    with torch.no_grad():
        flow.out_proj.weight.normal_()
        for name, value in flow.named_parameters():
            if "modulation" in name:
                value.normal_()
    flow(states, times, condition).square().sum().backward()
    silent = [n for n, p in flow.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_velocity_depends_on_time_condition_and_place(flow: FlowTransformer) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for value in flow.parameters():
            value.normal_(std=0.5)
    states, times, condition = inputs()
    plain = flow(states, times, condition)
    assert plain.shape == (2, 9, 5)
    assert not torch.allclose(flow(states, times + 0.1, condition), plain)
    assert not torch.allclose(flow(states, times, condition + 1), plain)
    turned = flow(states.flip(1), times, condition).flip(1)
    assert not torch.allclose(turned, plain), "tokens know their place"
    alone = flow(states[:1], times[:1], condition[:1])
    torch.testing.assert_close(alone[0], plain[0], rtol=0, atol=1e-5)


def test_the_order_of_the_condition_does_not_matter(flow: FlowTransformer) -> None:
    """Attention and mean see a set: what a query means, the language model has put into it."""
    torch.manual_seed(0)
    with torch.no_grad():
        for value in flow.parameters():
            value.normal_(std=0.5)
    states, times, condition = inputs()
    torch.testing.assert_close(
        flow(states, times, condition.flip(1)), flow(states, times, condition), rtol=0, atol=1e-5
    )


def test_attention_by_hand() -> None:
    """One source token: whatever the scores, the value itself comes out at every place."""
    torch.manual_seed(0)
    attention = FlowAttention(8, 7, 2)
    source = torch.randn(1, 1, 7)
    out = attention(torch.randn(1, 3, 8), source)
    value = attention.v_proj(source).reshape(1, 1, 2, 4).expand(1, 3, 2, 4)
    torch.testing.assert_close(out, value)


def test_sinusoids_by_hand() -> None:
    """Width 4: frequencies 1 and 1/100 of 1000 t; at t = 0 cosines 1, sines 0."""
    table = sinusoids(torch.tensor([0.0, 0.001]), 4)
    assert table[0].tolist() == [1.0, 1.0, 0.0, 0.0]
    expected = [math.cos(1), math.cos(0.01), math.sin(1), math.sin(0.01)]
    assert table[1].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_decoder_keeps_rows_and_columns_apart() -> None:
    """A feature changed in the top right corner changes pixels near it more than far from it."""
    torch.manual_seed(0)
    decoder = FeatureDecoder(DecoderSettings(channels=(8, 8, 8)), 5)
    features = torch.randn(1, 64, 5)
    changed = features.clone()
    changed[0, 7] += 0.5
    with torch.no_grad():
        before, after = decoder(features), decoder(changed)
    assert before.shape == (1, 3, 32, 32)
    assert bool(((before > 0) & (before < 1)).all())
    difference = (after - before).abs().sum(dim=1)[0]
    assert float(difference[:8, 24:].mean()) > 10 * float(difference[24:, :8].mean())
