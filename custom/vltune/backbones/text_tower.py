"""A frozen text tower that takes token embeddings, and can run many texts behind one prefix.

open_clip keeps the text tower in two layouts (at the top of CLIP, or under ``text``) and accepts
token ids only. Learnable prompts need the level of embeddings.

In a causal tower nothing before the class words depends on them. `encode_prefix` runs that part
once and keeps every layer's keys and values; `encode_suffixes` runs only the rest of each text.
Exact in values and gradients. Not in FedMPT (arXiv 2605.28347), which runs every prompt whole.
"""

from collections.abc import Sequence
from typing import Any

import open_clip
import torch
from open_clip.transformer import ResidualAttentionBlock, TextTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from vltune.backbones.checkpoint import BackboneError

# Keys and values of every layer, each (G, heads, P, head width), G prefixes of P tokens.
Prefix = list[tuple[Tensor, Tensor]]

_PROBE = "a"


class TextTower:
    """View of an open_clip model's text tower; holds no weights of its own.

    Attributes:
        width: Token width W.
        context_length: Most tokens of one text, start and end included.
        start_ids: Ids that the tokenizer puts before the words (none for SigLIP).
        end_id: Id that ends a text.
        pad_id: Id behind the end.
        is_causal: No token sees a later one, and the text is read at its end token; what stands
            behind the end may then be cut off exactly.
        can_share_prefix: `encode_prefix` works: causal, with open_clip's standard blocks.
    """

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        text: Any = getattr(model, "text", model)
        has_class_token = getattr(text, "cls_emb", None) is not None
        if not isinstance(text, open_clip.CLIP | TextTransformer) or has_class_token:
            raise BackboneError(
                f"unsupported text tower {type(text).__name__}: prompts need open_clip's own "
                "transformer without a class token"
            )
        self._text = text
        self._tokenizer = tokenizer
        self._pool = str(text.text_pool_type if text is model else text.pool_type)
        self.width = int(text.positional_embedding.shape[1])
        self.context_length = int(text.positional_embedding.shape[0])
        self._read_frame()
        self.is_causal = text.attn_mask is not None and self._pool in ("argmax", "eos")
        blocks = text.transformer.resblocks
        self.can_share_prefix = self.is_causal and all(
            isinstance(block, ResidualAttentionBlock) for block in blocks
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "TextTower":
        """A copied model shares the frozen tower."""
        return self

    def _read_frame(self) -> None:
        """Learn what the tokenizer puts around words, and check where the tower reads the text."""
        ids: list[int] = self._tokenizer([_PROBE])[0].tolist()
        words = self.word_ids(_PROBE)
        starts = [i for i in range(len(ids)) if ids[i : i + len(words)] == words]
        vocabulary = self._text.token_embedding.num_embeddings
        if len(ids) != self.context_length or not starts or max(ids) >= vocabulary:
            raise BackboneError(
                f"the tokenizer does not fit the text tower: it gives {len(ids)} ids up to "
                f"{max(ids)}, the tower takes {self.context_length} of a vocabulary of {vocabulary}"
            )
        end = starts[0] + len(words)
        self.start_ids = ids[: starts[0]]
        self.end_id, self.pad_id = ids[end], ids[-1]
        read_at = {
            "argmax": ids.index(max(ids)),
            "eos": ids.index(self._eos_id()) if self._eos_id() in ids else -1,
            "last": end,
        }.get(self._pool)
        if read_at != end:
            raise BackboneError(
                f"unsupported text tower: pooling {self._pool!r} does not read a text at its end"
            )

    def _eos_id(self) -> int:
        return int(getattr(self._text, "text_eos_id", getattr(self._text, "eos_id", -1)))

    @property
    def device(self) -> torch.device:
        """Where the tower runs."""
        return torch.device(self._text.positional_embedding.device)

    def word_ids(self, text: str) -> list[int]:
        """Token ids of the words of `text`, without start, end or padding."""
        if isinstance(self._tokenizer, open_clip.SimpleTokenizer):
            return list(self._tokenizer.encode(text))
        inner = self._tokenizer.tokenizer
        return list(inner.encode(self._tokenizer.clean_fn(text), add_special_tokens=False))

    def embed(self, ids: Tensor | Sequence[int]) -> Tensor:
        """Frozen token embeddings (..., W) of ids (...)."""
        table: Tensor = self._text.token_embedding.weight
        return table[torch.as_tensor(ids, dtype=torch.long, device=table.device)].detach()

    def encode_ids(self, ids: Tensor) -> Tensor:
        """Text features (N, D), not normalised, of framed and padded ids (N, context length)."""
        ids = ids.to(self.device)
        # argmax finds the first end id, as a padding of end ids requires.
        ends = (ids == self.end_id).int().argmax(dim=1)
        length = int(ends.max()) + 1 if self.is_causal else self.context_length
        return self.encode_embeddings(self.embed(ids[:, :length]), ends)

    def encode_embeddings(self, embeddings: Tensor, ends: Tensor) -> Tensor:
        """Run the whole tower: the plain path, by open_clip's own modules.

        Args:
            embeddings: Token embeddings without positions, (N, L, W).
            ends: Position of each text's end token, (N,), int64.

        Returns:
            Text features, (N, D), not normalised.
        """
        num_texts, length, _ = embeddings.shape
        mask = self._text.attn_mask
        hidden = self._text.transformer(
            embeddings + self._text.positional_embedding[:length],
            attn_mask=None if mask is None else mask[:length, :length],
        )
        if self._pool == "last":
            ends = torch.full_like(ends, length - 1)
        return self._project(hidden[torch.arange(num_texts, device=hidden.device), ends])

    def encode_prefix(self, embeddings: Tensor) -> Prefix:
        """Keys and values of every layer for G prefixes, embeddings (G, P, W) without positions."""
        length = embeddings.shape[1]
        hidden = embeddings + self._text.positional_embedding[:length]
        prefix: Prefix = []
        blocks = self._text.transformer.resblocks
        for block in blocks:
            query, key, value = _attention_inputs(block, block.ln_1(hidden))
            prefix.append((key, value))
            if len(prefix) == len(blocks):
                break  # nobody reads the prefix's own output
            attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            hidden = _finish_block(block, hidden, attended)
        return prefix

    def encode_suffixes(self, prefix: Prefix, embeddings: Tensor, ends: Tensor) -> Tensor:
        """Run C suffixes behind each of G prefixes.

        Args:
            prefix: From `encode_prefix`.
            embeddings: Token embeddings of the suffixes without positions, (C, Q, W); shorter ones
                are padded behind their end, which no earlier token can see.
            ends: Position of the end token inside each suffix, (C,), int64.

        Returns:
            Text features, (G, C, D), not normalised.
        """
        num_prefixes, _, offset, _ = prefix[0][0].shape
        num_texts, length, _ = embeddings.shape
        positions = self._text.positional_embedding[offset : offset + length]
        hidden = (embeddings + positions).repeat(num_prefixes, 1, 1)  # (G * C, Q, W)
        rows = torch.arange(len(hidden), device=hidden.device)
        ends = ends.repeat(num_prefixes)
        blocks = self._text.transformer.resblocks
        future = hidden.new_full((length, length), float("-inf")).triu(1)
        for block, past in zip(blocks, prefix, strict=True):
            query, key, value = _attention_inputs(block, block.ln_1(hidden))
            if block is blocks[-1]:
                # Only the end tokens are read from the last layer.
                query, hidden = query[rows, :, ends].unsqueeze(2), hidden[rows, ends].unsqueeze(1)
                future = future[ends][:, None, None]
            attended = _attend_behind_prefix(query, key, value, past, future)
            hidden = _finish_block(block, hidden, attended)
        return self._project(hidden[:, 0]).reshape(num_prefixes, num_texts, -1)

    def _project(self, hidden: Tensor) -> Tensor:
        hidden = self._text.ln_final(hidden)
        projection = self._text.text_projection
        if projection is None:
            return hidden
        is_linear = isinstance(projection, nn.Linear)
        projected: Tensor = projection(hidden) if is_linear else hidden @ projection
        return projected


def _attention_inputs(block: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (N, heads, L, head width) of normed tokens (N, L, W)."""
    attention = block.attn
    projected = F.linear(hidden, attention.in_proj_weight, attention.in_proj_bias)
    split = projected.reshape(*hidden.shape[:2], 3, attention.num_heads, -1)
    query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


def _attend_behind_prefix(
    query: Tensor, key: Tensor, value: Tensor, past: tuple[Tensor, Tensor], future: Tensor
) -> Tensor:
    """Attention of suffix tokens to their prefix and to earlier tokens of their own suffix.

    All suffixes of a prefix ask its keys as one long sequence, so that the prefix's keys and values
    are never copied. Measured faster than the fused kernel on copies (EXPERIMENTS.md).

    Args:
        query: (G * C, heads, q, h); q may be 1 where only one token is asked for.
        key: The suffixes' own keys, (G * C, heads, Q, h).
        value: The suffixes' own values, (G * C, heads, Q, h).
        past: Keys and values of the prefixes, each (G, heads, P, h).
        future: -inf where a query must not see a key of its suffix; (q, Q), or one row a text.

    Returns:
        Attended values, (G * C, heads, q, h).
    """
    past_key, past_value = past
    num_prefixes, prefix_length = past_key.shape[0], past_key.shape[2]
    query = query * query.shape[-1] ** -0.5

    def grouped(x: Tensor) -> Tensor:  # (G * C, heads, q, n) -> (G, heads, C * q, n)
        return x.reshape(num_prefixes, -1, *x.shape[1:]).transpose(1, 2).flatten(2, 3)

    def flat(x: Tensor) -> Tensor:  # (G, heads, C * q, n) -> (G * C, heads, q, n)
        split = x.reshape(*x.shape[:2], -1, query.shape[2], x.shape[-1])
        return split.transpose(1, 2).flatten(0, 1)

    scores_past = flat(grouped(query) @ past_key.transpose(-1, -2))
    scores_own = query @ key.transpose(-1, -2) + future
    weights = torch.cat([scores_past, scores_own], dim=-1).softmax(dim=-1)
    from_past = flat(grouped(weights[..., :prefix_length]) @ past_value)
    return from_past + weights[..., prefix_length:] @ value


def _finish_block(block: Any, hidden: Tensor, attended: Tensor) -> Tensor:
    """Output projection, residuals and MLP behind attention (N, heads, L, head width)."""
    merged = attended.transpose(1, 2).flatten(2)
    hidden = hidden + block.ls_1(block.attn.out_proj(merged))
    output: Tensor = hidden + block.ls_2(block.mlp(block.ln_2(hidden)))
    return output
