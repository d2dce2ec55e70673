r"""The diffusion transformer of BLIP3-o: noise, time and condition to velocities of features.

A block, after Next-DiT (Lumina-Next, arXiv 2406.18583) with the modulation of DiT (arXiv
2212.09748, section 3.2, "adaLN-Zero"), s and g from the embedding of time and condition:

    h = x + tanh(g_1) N_2(W_o (self(u) + tanh(a) cross(u, c))),   u = (1 + s_1) N_1(x)
    x' = h + tanh(g_2) N_4(FFN((1 + s_2) N_3(h)))

N is RMS norm, a is a gate for each head, queries and keys are normed too. Deviations: positions are
a learnt table, since the grid is fixed (there rotary), and a starts at 0.5 instead of 0, so that
the condition is heard from the first step on.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vltune.backbones.blip3o_config import FlowSettings

_MAX_PERIOD = 10_000.0
_GATE_START = 0.5


class FlowAttention(nn.Module):
    """Attention of several heads without an output projection.

    Args:
        width: Of the queries' tokens.
        source_width: Of the tokens attended to.
        num_heads: Heads.
    """

    def __init__(self, width: int, source_width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(source_width, width, bias=False)
        self.v_proj = nn.Linear(source_width, width, bias=False)
        self.q_norm = nn.RMSNorm(width // num_heads, eps=1e-5)
        self.k_norm = nn.RMSNorm(width // num_heads, eps=1e-5)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        """Tokens (B, T, width) and source (B, Q, source_width) -> heads (B, T, H, width / H)."""
        heads = (self.num_heads, -1)
        q = self.q_norm(self.q_proj(x).unflatten(-1, heads)).transpose(1, 2)
        k = self.k_norm(self.k_proj(source).unflatten(-1, heads)).transpose(1, 2)
        v = self.v_proj(source).unflatten(-1, heads).transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


class GatedFeedForward(nn.Module):
    """W_2 (silu(W_1 x) * W_3 x)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class FlowBlock(nn.Module):
    """One block; see the module's equations."""

    def __init__(self, settings: FlowSettings, condition_width: int) -> None:
        super().__init__()
        width = settings.width
        self.self_attention = FlowAttention(width, width, settings.num_heads)
        self.cross_attention = FlowAttention(width, condition_width, settings.num_heads)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.cross_gate = nn.Parameter(torch.full((settings.num_heads, 1), _GATE_START))
        self.feed_forward = GatedFeedForward(width, settings.ffn_width)
        self.norms = nn.ModuleList(nn.RMSNorm(width, eps=1e-5) for _ in range(4))
        self.modulation = nn.Linear(settings.modulation_width, 4 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor, embedding: Tensor) -> Tensor:
        """Tokens (B, T, W), condition (B, Q, C), embedding (B, E) -> tokens (B, T, W)."""
        s1, g1, s2, g2 = self.modulation(F.silu(embedding)).unsqueeze(1).chunk(4, dim=-1)
        before, after, before_ffn, after_ffn = self.norms
        u = (1 + s1) * before(x)
        heads = self.self_attention(u, u)
        heads = heads + self.cross_gate.tanh() * self.cross_attention(u, condition)
        h = x + g1.tanh() * after(self.out_proj(heads.flatten(2)))
        out: Tensor = h + g2.tanh() * after_ffn(self.feed_forward((1 + s2) * before_ffn(h)))
        return out


class FlowTransformer(nn.Module):
    """Velocity of features.

    Args:
        settings: Sizes.
        num_tokens: Features T of an image.
        feature_width: Their width D.
        condition_width: Width C of the query states.
    """

    def __init__(
        self, settings: FlowSettings, num_tokens: int, feature_width: int, condition_width: int
    ) -> None:
        super().__init__()
        width, inner = settings.width, settings.modulation_width
        self.modulation_width = inner
        self.in_proj = nn.Linear(feature_width, width)
        self.positions = nn.Parameter(torch.randn(num_tokens, width) * 0.02)
        self.time_embedding = nn.Sequential(
            nn.Linear(inner, inner), nn.SiLU(), nn.Linear(inner, inner)
        )
        self.condition_norm = nn.RMSNorm(condition_width, eps=1e-5)
        self.condition_embedding = nn.Linear(condition_width, inner)
        self.blocks = nn.ModuleList(
            FlowBlock(settings, condition_width) for _ in range(settings.depth)
        )
        self.out_norm = nn.RMSNorm(width, eps=1e-5)
        self.out_modulation = nn.Linear(inner, width)
        self.out_proj = nn.Linear(width, feature_width)
        for layer in (self.out_modulation, self.out_proj):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, states: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        """Velocities at x_t.

        Args:
            states: x_t, (B, T, D).
            times: t in [0, 1], (B,).
            condition: Hidden states of the image queries, (B, Q, C).

        Returns:
            (B, T, D); zero before any training.
        """
        condition = self.condition_norm(condition)
        embedding = self.time_embedding(sinusoids(times, self.modulation_width))
        embedding = embedding + self.condition_embedding(condition.mean(dim=1))
        x = self.in_proj(states) + self.positions
        for block in self.blocks:
            x = block(x, condition, embedding)
        scale = self.out_modulation(F.silu(embedding)).unsqueeze(1)
        out: Tensor = self.out_proj((1 + scale) * self.out_norm(x))
        return out


def sinusoids(times: Tensor, width: int) -> Tensor:
    """Sines and cosines of 1000 t at geometric frequencies, (B,) -> (B, width)."""
    half = width // 2
    exponents = torch.arange(half, dtype=times.dtype, device=times.device) / half
    angles = 1000.0 * times[:, None] * torch.exp(-math.log(_MAX_PERIOD) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=1)
