"""Texts as Janus reads them: token ids of framed prompts, answers and prompts for images."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vltune.backbones.janus_drawing import without_words
from vltune.backbones.janus_settings import PLACE, JanusSettings
from vltune.backbones.vision_language import TextTooLongError


@dataclass(frozen=True)
class JanusTexts:
    """Frames texts and refuses those that do not fit.

    Attributes:
        name: Of the model, for messages.
        tokenizer: With image, boi, eoi, bos, eos and pad tokens.
        settings: The frames.
        max_prompt_tokens: Most ids of a framed prompt, its image left out.
        max_answer_tokens: Most ids of an answer, its end included.
    """

    name: str
    tokenizer: Any = field(repr=False)
    settings: JanusSettings
    max_prompt_tokens: int
    max_answer_tokens: int

    def count(self, text: str) -> int:
        """Ids of a text framed as a prompt, the image left out."""
        before, after = self._around_image(text)
        return len(before) + len(after)

    def around_image(self, prompt: str) -> tuple[list[int], list[int]]:
        """Ids before and behind the image; its start and end tokens included.

        Raises:
            TextTooLongError: The prompt does not fit.
        """
        before, after = self._around_image(prompt)
        self._check_room(len(before) + len(after), self.max_prompt_tokens, "prompt")
        return before, after

    def answer(self, text: str) -> list[int]:
        """Ids of an answer and its end. Raises TextTooLongError where it does not fit."""
        ids = [*self._ids(self.settings.before_answer + text), self.tokenizer.eos_token_id]
        self._check_room(len(ids), self.max_answer_tokens, "answer")
        return ids

    def drawing(self, prompts: Sequence[str]) -> list[Tensor]:
        """Ids (L,), int64, of each prompt for an image; raises TextTooLongError."""
        rows = []
        for prompt in prompts:
            text = self._ids(self.settings.drawing.replace(PLACE, prompt))
            ids = [self.tokenizer.bos_token_id, *text, self.tokenizer.boi_token_id]
            self._check_room(len(ids), self.max_prompt_tokens, "prompt")
            rows.append(torch.tensor(ids))
        return rows

    def blank(self, ids: Tensor) -> Tensor:
        """The same row of `drawing` without its words."""
        kept = (self.tokenizer.bos_token_id, self.tokenizer.boi_token_id)
        return without_words(ids, kept, self.tokenizer.pad_token_id)

    def read(self, ids: Tensor) -> list[str]:
        """Texts of generated ids (B, L), without special tokens or outer blanks."""
        texts: list[str] = self.tokenizer.batch_decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [text.strip() for text in texts]

    def _around_image(self, prompt: str) -> tuple[list[int], list[int]]:
        before = [self.tokenizer.bos_token_id, *self._ids(self.settings.before_image)]
        after = self._ids(self.settings.after_image.replace(PLACE, prompt))
        return [*before, self.tokenizer.boi_token_id], [self.tokenizer.eoi_token_id, *after]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids if text else []

    def _check_room(self, length: int, room: int, what: str) -> None:
        if length > room:
            raise TextTooLongError(
                f"{what} of {length} tokens, {self.name} takes {room} (start and end included)."
                " Shorten it, or leave the pair out."
            )
