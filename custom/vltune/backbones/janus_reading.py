"""Janus' first ability: answers from image tokens and the words of a prompt."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from vltune.backbones.janus_texts import JanusTexts


def prompt_rows(
    model: Any, texts: JanusTexts, image_tokens: Tensor, prompts: Sequence[str]
) -> list[Tensor]:
    """Embeddings (L, D) of each prompt with its image: `<bos> .. <boi> image <eoi> ..`.

    Args:
        model: JanusForConditionalGeneration.
        texts: Frames the prompts.
        image_tokens: (B, M, D).
        prompts: B texts.

    Raises:
        TextTooLongError: A prompt does not fit.
        ValueError: The counts disagree.
    """
    words = model.get_input_embeddings()
    if image_tokens.ndim != 3 or len(prompts) != len(image_tokens):
        raise ValueError(
            f"image_tokens: expected ({len(prompts)}, M, {words.weight.shape[1]}) for "
            f"{len(prompts)} prompts, got {tuple(image_tokens.shape)}"
        )
    rows = []
    for prompt, image in zip(prompts, image_tokens.to(words.weight), strict=True):
        before, after = texts.around_image(prompt)
        ids = torch.tensor([*before, *after], device=image.device)
        first, last = words(ids).split([len(before), len(after)])
        rows.append(torch.cat([first, image, last]))
    return rows


def answer_losses(model: Any, rows: Sequence[Tensor], answers: Sequence[Tensor]) -> list[Tensor]:
    """Cross entropy of each token of each answer, nats, a row (L,) each; differentiable.

    Args:
        model: JanusForConditionalGeneration.
        rows: B embedded prompts, from `prompt_rows`.
        answers: B rows of ids, int64, the end included.
    """
    words = model.get_input_embeddings()
    filled = [torch.cat([row, words(ids[:-1])]) for row, ids in zip(rows, answers, strict=True)]
    # Padding stands behind the answer: causal attention never looks at it.
    states = model.model.language_model(
        inputs_embeds=pad_sequence(filled, batch_first=True), use_cache=False
    ).last_hidden_state
    lengths = [len(ids) for ids in answers]
    picked = [
        state[len(row) - 1 : len(row) - 1 + length]
        for state, row, length in zip(states, rows, lengths, strict=True)
    ]
    logits = model.lm_head(torch.cat(picked)).float()
    losses = F.cross_entropy(logits, torch.cat(list(answers)), reduction="none")
    return list(torch.split(losses, lengths))


@torch.no_grad()
def write_answers(
    model: Any, texts: JanusTexts, rows: Sequence[Tensor], max_tokens: int
) -> list[str]:
    """Continue each embedded prompt greedily."""
    width = max(len(row) for row in rows)
    embeddings = torch.stack([F.pad(row, (0, 0, width - len(row), 0)) for row in rows])
    mask = torch.stack(
        [F.pad(row.new_ones(len(row), dtype=torch.long), (width - len(row), 0)) for row in rows]
    )
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_tokens,
        bos_token_id=texts.tokenizer.bos_token_id,
        eos_token_id=texts.tokenizer.eos_token_id,
        pad_token_id=texts.tokenizer.pad_token_id,
    )
    return texts.read(
        model.generate(inputs_embeds=embeddings, attention_mask=mask, generation_config=config)
    )
