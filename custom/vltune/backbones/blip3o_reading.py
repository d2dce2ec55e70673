"""How a BLIP3-o reads: losses of answers, and greedy answers, from kept patch tokens and ids."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vltune.backbones.blip3o_model import Blip3oModel, pad_ids

Ids = Sequence[Sequence[int]]


def answer_losses(
    model: Blip3oModel,
    image_tokens: Tensor,
    prompts: Ids,
    answers: Ids,
    reduction: Literal["mean", "sum"],
) -> Tensor:
    """Negative log-likelihood of each answer's ids, (B,), nats; differentiable.

    Args:
        model: All parts.
        image_tokens: (B, M, D).
        prompts: Framed ids of B prompts.
        answers: Ids of B answers with their end, without a start.
        reduction: Mean or sum over an answer's ids.
    """
    device, before = image_tokens.device, model.settings.num_read - 1
    ids, _ = pad_ids([[*a, *b] for a, b in zip(prompts, answers, strict=True)], device)
    embeddings = model.read_images(image_tokens, ids)
    rows = [row for row, answer in enumerate(answers) for _ in answer]
    # The token before an answer's first is the last one of its prompt.
    places = [
        before + len(prompt) + offset
        for prompt, answer in zip(prompts, answers, strict=True)
        for offset in range(len(answer))
    ]
    row_of, place_of = torch.tensor([rows, places], device=device)
    logits = model.answer_logits(embeddings, row_of, place_of)
    labels = torch.tensor([token for answer in answers for token in answer], device=device)
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    total = losses.new_zeros(len(answers)).index_add(0, row_of, losses)
    if reduction == "sum":
        return total
    return total / torch.tensor([len(answer) for answer in answers], device=device)


@torch.no_grad()
def write_answers(
    model: Blip3oModel, image_tokens: Tensor, prompts: Ids, *, max_tokens: int, end: int, pad: int
) -> Tensor:
    """Greedy ids (B, N) after each image and prompt; what follows the end is `pad`."""
    ids, lengths = pad_ids(prompts, image_tokens.device)
    embeddings = model.read_images(image_tokens, ids)
    lengths = lengths + model.settings.num_read
    # transformers' loop wants rows that end together, so the padding moves to the left.
    longest = int(lengths.max())
    index = torch.arange(longest, device=ids.device) - (longest - lengths)[:, None]  # (B, longest)
    source = index.clamp_min(0)[:, :, None].expand(-1, -1, embeddings.shape[2])
    language: Any = model.language_model
    written: Tensor = language.generate(
        inputs_embeds=embeddings.gather(1, source),
        attention_mask=(index >= 0).long(),
        max_new_tokens=max_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=end,
        pad_token_id=pad,
    )
    return written
