"""Janus' second ability: codes of an image after the words of its prompt.

Codes are no words: they have their own embeddings and their own head, and ids 0 .. K - 1 of their
own. A prompt is `<bos> text <boi>`. Classifier-free guidance compares it with the same row in which
every token but those two is padding, as transformers' generate does; training leaves some prompts
out in exactly that way.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

PROMPT_DROP = 0.1
"""Share of prompts left out while training (Chen et al. 2025, Janus-Pro, train so too)."""


def without_words(ids: Tensor, keep: Sequence[int], pad_id: int) -> Tensor:
    """Every id but those of `keep` replaced by padding."""
    is_kept = torch.isin(ids, torch.tensor(list(keep), device=ids.device))
    return torch.where(is_kept, ids, torch.full_like(ids, pad_id))


def code_losses(model: Any, codes: Tensor, prompts: Sequence[Tensor]) -> Tensor:
    """Cross entropy of each code given the prompt and the codes before it, nats, (B, T).

    Args:
        model: JanusForConditionalGeneration.
        codes: (B, T), int64.
        prompts: B rows of ids, of any lengths.
    """
    words = model.get_input_embeddings()
    known = model.prepare_embeddings_for_image_generation(codes[:, :-1])  # (B, T - 1, D)
    rows = [torch.cat([words(ids), seen]) for ids, seen in zip(prompts, known, strict=True)]
    # Padding stands behind the codes: causal attention never looks at it.
    states = model.model.language_model(
        inputs_embeds=pad_sequence(rows, batch_first=True), use_cache=False
    ).last_hidden_state
    first = torch.tensor([len(ids) - 1 for ids in prompts], device=codes.device)
    where = first[:, None] + torch.arange(codes.shape[1], device=codes.device)
    chosen = states.gather(1, where[..., None].expand(-1, -1, states.shape[-1]))
    logits = model.model.generation_head(chosen).float()
    return F.cross_entropy(logits.transpose(1, 2), codes, reduction="none")


@torch.no_grad()
def draw_codes(
    model: Any,
    prompts: Sequence[Tensor],
    blanks: Sequence[Tensor],
    *,
    num_codes: int,
    guidance: float,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw the codes of images one after the other.

    transformers' generate takes no generator; with None as generator (greedy) both agree.

    Args:
        model: JanusForConditionalGeneration.
        prompts: B rows of ids.
        blanks: The same rows without their words.
        num_codes: Codes T of an image.
        guidance: logits = blank + guidance * (prompt - blank).
        temperature: Divides the guided logits.
        generator: Of the samples; None: the likeliest code each time.

    Returns:
        (B, T), int64.
    """
    embeddings, mask = _left_padded(model, [*prompts, *blanks])
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = None
    drawn: list[Tensor] = []
    for _ in range(num_codes):
        step = model.model.language_model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        cache = step.past_key_values
        told, untold = model.model.generation_head(step.last_hidden_state[:, -1]).float().chunk(2)
        code = _choose((untold + guidance * (told - untold)) / temperature, generator)
        drawn.append(code)
        embeddings = model.prepare_embeddings_for_image_generation(code.repeat(2)[:, None])
        mask = F.pad(mask, (0, 1), value=1)
        positions = positions[:, -1:] + 1
    return torch.stack(drawn, dim=1)


def _choose(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """One code of each row, (B,), int64."""
    if generator is None:
        return logits.argmax(dim=-1)
    # Samples are drawn where the generator lives, so that one seed means the same on any device.
    shares = logits.softmax(dim=-1).to(generator.device)
    return torch.multinomial(shares, 1, generator=generator)[:, 0].to(logits.device)


def _left_padded(model: Any, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Word embeddings (B, L, D) and mask (B, L), int64, of rows that all end at the right."""
    width = max(len(row) for row in rows)
    mask = torch.stack([F.pad(torch.ones_like(row), (width - len(row), 0)) for row in rows])
    ids = torch.stack([F.pad(row, (width - len(row), 0)) for row in rows])
    embeddings: Tensor = model.get_input_embeddings()(ids)
    return embeddings, mask
