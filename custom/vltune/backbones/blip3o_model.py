"""BLIP3-o (arXiv 2505.09568) as a module.

An autoregressive model reads images and, for drawing, writes a condition that a diffusion
transformer turns into vision features:

    answer:  [merged and projected patches][<s> prompt </s>][answer </s>]   next-token prediction
    draw:    [<s> prompt </s>][image queries]  ->  query states  ->  features  ->  pixels

Source: arXiv 2505.09568, section 3 and Fig. 3; the federation over it, arXiv 2601.15390. Deviation:
the same frozen tower is read and drawn, while the published checkpoints read by Qwen2.5-VL's own
tower and draw EVA-CLIP's features. All sequences are padded on the right: under causal attention no
token sees padding, so no masks are needed and no row depends on its neighbours.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from vltune.backbones.blip3o_config import Blip3oSettings
from vltune.backbones.feature_decoder import FeatureDecoder
from vltune.backbones.flow_transformer import FlowTransformer
from vltune.backbones.framed_text import padded
from vltune.backbones.patch_tower import PatchTower

PARTS = (
    "vision_tower",
    "projector",
    "language_model",
    "image_queries",
    "flow_transformer",
    "feature_decoder",
)
"""Attributes that hold parameters, in the order of the data's way."""

_LANGUAGE_SCOPE = r"language_model\.model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj"
GENERATION_SCOPE = (
    r"flow_transformer\.blocks\.\d+\.((self_attention|cross_attention)\.(q|k|v)_proj|out_proj)"
)
LORA_SCOPE = rf"({_LANGUAGE_SCOPE}|{GENERATION_SCOPE})"
"""Attention of the language model and of the diffusion transformer; whole names, so that a tower
of transformers with a `q_proj` of its own stays out."""


class Blip3oModel(nn.Module):
    """All parts of a BLIP3-o.

    Attributes:
        feature_mean: Mean of the tower's features by channel, (D,).
        feature_std: Their standard deviation; the flow draws standardised features.
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, settings: Blip3oSettings) -> None:
        super().__init__()
        vision = settings.vision
        language = Qwen2Config(**settings.language)
        width = int(language.hidden_size)
        self.settings = settings
        self.vision_tower = PatchTower(vision)
        self.projector = nn.Sequential(
            nn.Linear(vision.width * settings.merge**2, width), nn.GELU(), nn.Linear(width, width)
        )
        self.language_model = Qwen2ForCausalLM(language)
        self.image_queries = nn.Parameter(torch.randn(settings.num_queries, width) * 0.02)
        self.flow_transformer = FlowTransformer(
            settings.flow, vision.num_tokens, vision.width, width
        )
        decoder = settings.decoder
        self.feature_decoder = FeatureDecoder(decoder, vision.width) if decoder else None
        self.register_buffer("feature_mean", torch.zeros(vision.width))
        self.register_buffer("feature_std", torch.ones(vision.width))

    @property
    def embedding(self) -> nn.Embedding:
        """The language model's token table."""
        language: Any = self.language_model
        table: nn.Embedding = language.get_input_embeddings()
        return table

    def standardise(self, features: Tensor) -> Tensor:
        """The tower's features (B, T, D) -> zero mean and unit variance by channel."""
        return (features - self.feature_mean) / self.feature_std

    def answer_logits(self, embeddings: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Logits of the token *after* each chosen position.

        Args:
            embeddings: (B, L, W), padded on the right.
            rows: Row of each of N positions, (N,).
            positions: In 0..L-1, (N,).

        Returns:
            (N, vocabulary).
        """
        hidden = self._hidden(embeddings)
        language: Any = self.language_model
        logits: Tensor = language.lm_head(hidden[rows, positions])
        return logits

    def query_states(self, prompt_ids: Sequence[Sequence[int]]) -> Tensor:
        """Hidden states of the image queries after each of B framed prompts, (B, Q, W)."""
        queries = self.image_queries
        ids, lengths = pad_ids(prompt_ids, queries.device)
        embeddings = self.embedding(ids)
        room = embeddings.new_zeros(len(ids), *queries.shape)
        places = lengths[:, None] + torch.arange(len(queries), device=queries.device)  # (B, Q)
        index = places[:, :, None].expand(-1, -1, queries.shape[1])
        embeddings = torch.cat([embeddings, room], dim=1)
        embeddings = embeddings.scatter(1, index, queries.expand(len(ids), -1, -1))
        return self._hidden(embeddings).gather(1, index)

    def read_images(self, image_tokens: Tensor, ids: Tensor) -> Tensor:
        """Patch tokens (B, M, D) and ids (B, L) -> embeddings (B, M / merge^2 + L, W)."""
        images = self.projector(merge_tokens(image_tokens, self.settings.merge))
        return torch.cat([images, self.embedding(ids)], dim=1)

    def _hidden(self, embeddings: Tensor) -> Tensor:
        language: Any = self.language_model
        hidden: Tensor = language.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        return hidden

    def count_parameters(self) -> dict[str, int]:
        """Parameters by part; a tied output projection is counted once."""
        counts = dict.fromkeys(PARTS, 0)
        for name, value in self.named_parameters():
            counts[name.partition(".")[0]] += value.numel()
        return counts


def merge_tokens(tokens: Tensor, merge: int) -> Tensor:
    """Lay squares of merge x merge tokens of a square grid side by side.

    (B, M, D) -> (B, M / merge^2, merge^2 D), squares and what is in them row by row.
    """
    if merge == 1:
        return tokens
    batch, count, width = tokens.shape
    side = math.isqrt(count) // merge
    grid = tokens.reshape(batch, side, merge, side, merge, width).transpose(2, 3)
    return grid.reshape(batch, side * side, merge * merge * width)


def pad_ids(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids padded on the right by 0 (B, L), int64, and the rows' lengths (B,)."""
    ids, mask = padded(rows, 0, device)
    return ids, mask.sum(dim=1)
