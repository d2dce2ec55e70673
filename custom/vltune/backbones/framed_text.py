"""Texts to ids as a tokenizer frames them, and a refusal of what does not fit."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vltune.backbones.vision_language import TextTooLongError


def framed_ids(
    tokenizer: Any, texts: Sequence[str], *, room: int, what: str, name: str
) -> list[list[int]]:
    """Ids of each text with its frame (start and end).

    Args:
        tokenizer: A fast tokenizer of transformers.
        texts: Any number.
        room: Most ids of a text.
        what: `prompt` or `answer`, for the message.
        name: The model's, for the message.

    Raises:
        TextTooLongError: A text has more ids; nothing is cut.
    """
    if not texts:
        return []
    framed: list[list[int]] = tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
    longest = max(len(ids) for ids in framed)
    if longest > room:
        raise TextTooLongError(
            f"{what} of {longest} tokens, {name} takes {room} (start and end included)."
            " Shorten it, or leave the pair out."
        )
    return framed


def count_framed(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Ids of each text, its frame included."""
    return [len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]


def padded(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Ids padded on the right (B, L), int64, and where they are no padding, bool."""
    longest = max((len(row) for row in rows), default=0)
    ids = torch.full((len(rows), longest), pad_id)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for row, part in enumerate(rows):
        ids[row, : len(part)] = torch.tensor(part)
        mask[row, : len(part)] = True
    return ids.to(device), mask.to(device)
