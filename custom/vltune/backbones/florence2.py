"""Florence-2 (arXiv 2311.06242) by transformers' own class, from image tokens that are kept.

    backbone = load_florence2(BackboneConfig("florence2-compact", "assets/florence2-compact"))
    tokens = backbone.encode_images(pixels)                        # (B, M, D), once per image
    loss = backbone.loss(tokens, ["Is there a dog?"], ["yes"])     # (B,)
    backbone.answer(tokens, ["Is there a dog?"], max_tokens=8)     # ["no"]

An encoder-decoder: the encoder reads the image tokens and then the prompt, framed as
`<s> prompt </s>`; the decoder starts with `</s>` and writes `<s> answer </s>`. Equal to
transformers' own forward and generate on pixels. No code of a checkpoint is ever run.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutput

from vltune.backbones.checkpoint import BackboneConfig
from vltune.backbones.devices import place_images
from vltune.backbones.florence2_checkpoint import (
    Florence2Parts,
    fingerprint_of,
    load_parts,
    preprocess_of,
)
from vltune.backbones.framed_text import count_framed, framed_ids, padded
from vltune.backbones.vision_language import TextTooLongError
from vltune.files import sha256_json

__all__ = ["LORA_SCOPE", "Florence2Backbone", "load_florence2"]

logger = logging.getLogger(__name__)

LORA_SCOPE = r"model\.language_model\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
"""Bare names would hit the vision tower too: DaViT has fc1 and fc2. The output projection is tied
to the token table and stays out."""
IGNORED = -100
"""Label of padding in transformers' losses."""


@dataclass(frozen=True, eq=False)
class Florence2Backbone:
    """A frozen Florence-2; attributes as in `vision_language.VisionLanguageBackbone`.

    Attributes:
        tokenizer: The checkpoint's tokenizer.
        start_id: Id with which the decoder starts.
    """

    name: str
    model: nn.Module = field(repr=False)
    tokenizer: Any = field(repr=False)
    preprocess: Callable[[Any], Tensor]
    image_size: tuple[int, int]
    num_image_tokens: int
    image_token_width: int
    max_prompt_tokens: int
    max_answer_tokens: int
    start_id: int
    fingerprint: str
    preprocess_fingerprint: str
    lora_scope: str = LORA_SCOPE

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self._embedding.weight.device

    @functools.cached_property
    def tokenizer_fingerprint(self) -> str:
        """Hex SHA-256 of vocabulary, merges and special tokens."""
        return sha256_json(self.tokenizer.backend_tokenizer.to_str())

    @property
    def _embedding(self) -> nn.Embedding:
        table: nn.Embedding = self._florence.get_input_embeddings()
        return table

    @property
    def _florence(self) -> Any:
        """The model without nn.Module's type, which knows none of its parts."""
        return self.model

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Frozen image tokens (B, M, D), fp32, of preprocessed images (B, 3, H, W).

        Raises:
            ValueError: The images have another shape (both are printed).
        """
        placed = place_images(pixels, self.image_size, self.device)
        with torch.no_grad():
            tokens: Tensor = self._florence.get_image_features(placed).pooler_output
        return tokens.float()

    def loss(
        self,
        image_tokens: Tensor,
        prompts: Sequence[str],
        answers: Sequence[str],
        *,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> Tensor:
        """Negative log-likelihood of each answer's tokens, `<s>` and `</s>` included.

        Args:
            image_tokens: (B, M, D), from `encode_images`.
            prompts: B texts.
            answers: B texts.
            reduction: Mean or sum over an answer's tokens; never over the batch.

        Returns:
            (B,), nats; differentiable.

        Raises:
            TextTooLongError: A prompt or an answer does not fit the model's positions.
            ValueError: The counts of image tokens, prompts and answers disagree.
        """
        if len(answers) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(answers)} answers")
        states, mask = self._encode(image_tokens, prompts)
        ids, answer_mask = self._ids(answers, self.max_answer_tokens, "answer")
        shifted = torch.cat([torch.full_like(ids[:, :1], self.start_id), ids[:, :-1]], dim=1)
        hidden = self._florence.model.language_model.decoder(
            input_ids=shifted,
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            use_cache=False,
        ).last_hidden_state
        logits = self._florence.lm_head(hidden)  # (B, L, vocabulary)
        labels = ids.masked_fill(~answer_mask, IGNORED)
        losses = F.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
        ).view_as(labels)
        total = losses.sum(dim=1)
        return total if reduction == "sum" else total / answer_mask.sum(dim=1)

    def log_likelihood(
        self, image_tokens: Tensor, prompts: Sequence[str], answers: Sequence[str]
    ) -> Tensor:
        """Log-likelihood of each whole answer in nats, (B,); differentiable. See `loss`."""
        return -self.loss(image_tokens, prompts, answers, reduction="sum")

    def answer(self, image_tokens: Tensor, prompts: Sequence[str], *, max_tokens: int) -> list[str]:
        """Answers by greedy decoding from kept image tokens.

        Args:
            image_tokens: (B, M, D).
            prompts: B texts.
            max_tokens: Most tokens to write, `<s>` and `</s>` included.

        Raises:
            TextTooLongError: A prompt does not fit, or max_tokens exceeds the model's positions.
        """
        if not 1 <= max_tokens <= self.max_answer_tokens:
            raise TextTooLongError(
                f"{self.name}: max_tokens must be in 1..{self.max_answer_tokens}, got {max_tokens}"
            )
        with torch.no_grad():
            states, mask = self._encode(image_tokens, prompts)
            ids = self._florence.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                attention_mask=mask,
                generation_config=self._greedy(max_tokens),
            )
        texts: list[str] = self.tokenizer.batch_decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [text.strip() for text in texts]

    def _greedy(self, max_tokens: int) -> GenerationConfig:
        """The checkpoint's generation settings without beams or sampling."""
        config = GenerationConfig.from_dict(self._florence.generation_config.to_dict())
        config.num_beams, config.do_sample, config.early_stopping = 1, False, False
        config.max_length, config.min_length, config.max_new_tokens = None, 0, max_tokens
        return config

    def _encode(self, image_tokens: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encoder states (B, M + L, D) and their mask (B, M + L), int64."""
        if image_tokens.ndim != 3 or len(prompts) != len(image_tokens):
            raise ValueError(
                f"image_tokens: expected ({len(prompts)}, M, {self.image_token_width}) for "
                f"{len(prompts)} prompts, got {tuple(image_tokens.shape)}"
            )
        ids, prompt_mask = self._ids(prompts, self.max_prompt_tokens, "prompt")
        embeddings = self._embedding(ids)
        image_tokens = image_tokens.to(embeddings)
        embeddings = torch.cat([image_tokens, embeddings], dim=1)
        image_mask = prompt_mask.new_ones(image_tokens.shape[:2])
        mask = torch.cat([image_mask, prompt_mask], dim=1).long()
        states: Tensor = self._florence.model.language_model.encoder(
            inputs_embeds=embeddings, attention_mask=mask
        ).last_hidden_state
        return states, mask

    def _ids(self, texts: Sequence[str], room: int, what: str) -> tuple[Tensor, Tensor]:
        """Framed and right-padded ids (B, L), int64, and where they are no padding, bool."""
        framed = framed_ids(self.tokenizer, texts, room=room, what=what, name=self.name)
        return padded(framed, self.tokenizer.pad_token_id, self.device)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, start and end included, to be held against `max_..._tokens`."""
        return count_framed(self.tokenizer, texts)


def load_florence2(config: BackboneConfig, device: torch.device | str = "cpu") -> Florence2Backbone:
    """Load a converted Florence-2, or florence2-compact, in fp32.

    Args:
        config: `weights` is a local folder of transformers, or a hub id such as
            `florence-community/Florence-2-base`; `sha256` is that of model.safetensors.
        device: Where the model will run.

    Raises:
        BackboneError: The checkpoint is missing, damaged, an original one of Microsoft that needs
            its own code, or of another architecture.
    """
    parts = load_parts(config)
    model = parts.model.eval().requires_grad_(False).to(device)
    logger.info("loaded %s from %s", config.model, config.weights)
    return backbone_of(config.model, parts, model)


def backbone_of(name: str, parts: Florence2Parts, model: Any) -> Florence2Backbone:
    """Wrap a loaded model; `model` stays the caller's: its mode and gradients are not touched."""
    preprocess, values = preprocess_of(parts)
    text = model.config.text_config
    size = (int(values["size"][0]), int(values["size"][1]))
    positions = int(text.max_position_embeddings)
    with torch.no_grad():
        pixels = torch.zeros(1, 3, *size, device=model.device, dtype=model.dtype)
        tokens = model.get_image_features(pixels).pooler_output
    return Florence2Backbone(
        name=name,
        model=model,
        tokenizer=parts.tokenizer,
        preprocess=preprocess,
        image_size=size,
        num_image_tokens=tokens.shape[1],
        image_token_width=tokens.shape[2],
        max_prompt_tokens=positions - tokens.shape[1],
        max_answer_tokens=positions,
        start_id=int(text.decoder_start_token_id),
        fingerprint=fingerprint_of(model),
        preprocess_fingerprint=sha256_json(values),
    )
