"""Per-condition residual adapters on frozen patch features (arXiv 2605.28347)."""

import math

import torch
from torch import Tensor, nn


class ConditionAdapters(nn.Module):
    """One LoRA-like adapter a condition: V_k = V + (alpha / r) (V down_k) up_k.

    The paper writes W_up(W_down(V)); the residual and `up` = 0 at the start, which keeps training
    near the zero-shot model, are our reading.

    Args:
        num_conditions: K.
        embed_dim: D.
        rank: r, the paper's D_s.
        alpha: Scale times rank.
        generator: Seeds `down`.
    """

    def __init__(
        self,
        num_conditions: int,
        embed_dim: int,
        rank: int,
        alpha: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if min(num_conditions, embed_dim, rank) < 1:
            raise ValueError(
                f"expected K, D and rank >= 1, got {num_conditions}, {embed_dim}, {rank}"
            )
        self.scale = alpha / rank
        down = torch.randn(num_conditions, embed_dim, rank, generator=generator)
        self.down = nn.Parameter(down / math.sqrt(embed_dim))
        self.up = nn.Parameter(torch.zeros(num_conditions, rank, embed_dim))

    def forward(self, patch_features: Tensor) -> Tensor:
        """Adapted patches: (B, M, D) -> (B, K, M, D), not normalised."""
        hidden = torch.einsum("bmd,kdr->bkmr", patch_features, self.down)
        return patch_features.unsqueeze(1) + self.scale * torch.einsum(
            "bkmr,krd->bkmd", hidden, self.up
        )

    def cosine_similarity(self, patch_features: Tensor, text_features: Tensor) -> Tensor:
        """Cosines of adapted patches and texts without ever building (B, K, M, D).

        With h = scale V down: <V_k, t> = <V, t> + <h, up t> and
        |V_k|^2 = |V|^2 + 2 <h, up V> + h up up^T h, so everything beyond V T^T has width r, not D.
        Exact up to rounding.

        Args:
            patch_features: V, (B, M, D).
            text_features: (K, C, D) or (1, C, D), unit norm.

        Returns:
            (B, K, M, C).

        Raises:
            ValueError: A shape does not fit the adapters.
        """
        self._check(patch_features, text_features)
        (K, D, r), C = self.down.shape, text_features.shape[1]
        B, M, _ = patch_features.shape
        texts = text_features.expand(K, C, D)
        flat = patch_features.reshape(B * M, D)
        # All conditions' factors side by side make one product; conditions come first afterwards,
        # so that no product broadcasts (a broadcast matmul would copy V for each condition).
        hidden = self.scale * (flat @ self.down.transpose(0, 1).reshape(D, K * r))
        hidden = hidden.view(B * M, K, r).transpose(0, 1)  # (K, B M, r)
        frozen = (flat @ texts.reshape(K * C, D).T).view(B * M, K, C).transpose(0, 1)
        dot = torch.baddbmm(frozen, hidden, self.up @ texts.transpose(1, 2))
        cosine = dot * self._inverse_norm(flat, hidden).unsqueeze(-1)
        return cosine.view(K, B, M, C).transpose(0, 1)

    def _inverse_norm(self, flat: Tensor, hidden: Tensor) -> Tensor:
        """1 / |V_k|, (K, B M), of V (B M, D) and h (K, B M, r)."""
        K, r, D = self.up.shape
        projected = (flat @ self.up.reshape(K * r, D).T).view(-1, K, r).transpose(0, 1)
        gram = self.up @ self.up.transpose(1, 2)  # (K, r, r)
        change = (hidden * (2 * projected + hidden @ gram)).sum(dim=-1)
        square = flat.square().sum(dim=-1) + change
        # Rounding can push the square of a vanishing vector below zero.
        return square.clamp_min(1e-12).rsqrt()

    def _check(self, patch_features: Tensor, text_features: Tensor) -> None:
        K, D, _ = self.down.shape
        patches, texts = tuple(patch_features.shape), tuple(text_features.shape)
        if len(patches) != 3 or patches[-1] != D:
            raise ValueError(f"expected patch features (B, M, {D}), got {patches}")
        if len(texts) != 3 or texts[0] not in (1, K) or texts[-1] != D:
            raise ValueError(f"expected text features ({K} or 1, C, {D}), got {texts}")
