"""BLIP for questions (arXiv 2201.12086, section 3.1) by transformers' own class; it does not draw.

    backbone = load_blip_vqa(BackboneConfig("blip-vqa-base", "/models/blip-vqa-base"))
    tokens = backbone.encode_images(pixels)                        # (B, M, D), once per image
    loss = backbone.loss(tokens, ["Is there a dog?"], ["yes"])     # (B,)

A text encoder reads the question, framed as `[CLS] question [SEP]`, and attends to the image; a
decoder starts with the checkpoint's start token and writes `answer [SEP]`. Equal to transformers'
own forward and generate on pixels, question by question; in a batch transformers' decoder also
reads the padding of shorter questions, on which nothing depends here (`mask_cross_attention`). The
decoder is trained from the token with which it starts writing; transformers' examples train it from
`[CLS]`.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vltune.backbones.blip_vqa_checkpoint import BlipVqaParts, load_parts
from vltune.backbones.checkpoint import BackboneConfig
from vltune.backbones.devices import place_images
from vltune.backbones.framed_text import count_framed, framed_ids, padded
from vltune.backbones.squared_images import squash_to
from vltune.backbones.transformers_checkpoint import hash_model, settings_of
from vltune.backbones.vision_language import TextTooLongError
from vltune.files import sha256_json

__all__ = ["LORA_SCOPE", "BlipVqaBackbone", "load_blip_vqa"]

logger = logging.getLogger(__name__)

LORA_SCOPE = (
    r"text_(encoder|decoder\.bert)\.encoder\.layer\.\d+\.(attention|crossattention)\.self\."
    r"(query|key|value)"
)
"""Self and cross attention of both text towers, as in NVIDIA FLARE's research/fedumm; the vision
tower's attention is one `qkv` and stays frozen."""


@dataclass(frozen=True, eq=False)
class BlipVqaBackbone:
    """A frozen BLIP; attributes as in `vision_language.VisionLanguageBackbone`.

    Attributes:
        tokenizer: The checkpoint's tokenizer.
        start_id: Id with which the decoder starts.
        end_id: Id with which an answer ends.
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
    end_id: int
    fingerprint: str
    preprocess_fingerprint: str
    lora_scope: str = LORA_SCOPE

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        place: torch.device = self._blip.get_input_embeddings().weight.device
        return place

    @functools.cached_property
    def tokenizer_fingerprint(self) -> str:
        """Hex SHA-256 of vocabulary and special tokens."""
        return sha256_json(self.tokenizer.backend_tokenizer.to_str())

    @property
    def _blip(self) -> Any:
        """The model without nn.Module's type, which knows none of its parts."""
        return self.model

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Frozen image tokens (B, M, D), fp32, of preprocessed images (B, 3, H, W).

        Raises:
            ValueError: The images have another shape (both are printed).
        """
        placed = place_images(pixels, self.image_size, self.device)
        with torch.no_grad():
            output = self._blip.vision_model(pixel_values=placed)
        tokens: Tensor = output.last_hidden_state
        return tokens.float()

    def loss(
        self,
        image_tokens: Tensor,
        prompts: Sequence[str],
        answers: Sequence[str],
        *,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> Tensor:
        """Negative log-likelihood of each answer's tokens and its end, (B,), nats.

        Args:
            image_tokens: (B, M, D), from `encode_images`.
            prompts: B texts.
            answers: B texts.
            reduction: Mean or sum over an answer's tokens; never over the batch.

        Raises:
            TextTooLongError: A prompt or an answer does not fit the model's positions.
            ValueError: The counts of image tokens, prompts and answers disagree.
        """
        if len(answers) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(answers)} answers")
        states, question_mask = self._encode(image_tokens, prompts)
        ids, mask = self._pad(self._framed(answers, self.max_answer_tokens, "answer"))
        ids[:, 0] = self.start_id
        logits = self._blip.text_decoder(
            input_ids=ids[:, :-1],
            attention_mask=mask[:, :-1].long(),
            encoder_hidden_states=states,
            encoder_attention_mask=question_mask,
            use_cache=False,
        ).logits
        counts = mask[:, 1:]
        losses = F.cross_entropy(logits.float().transpose(1, 2), ids[:, 1:], reduction="none")
        total = (losses * counts).sum(dim=1)
        return total if reduction == "sum" else total / counts.sum(dim=1)

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
            max_tokens: Most tokens to write, `[SEP]` included.

        Raises:
            TextTooLongError: A prompt does not fit, or max_tokens exceeds the model's positions.
        """
        if not 1 <= max_tokens <= self.max_answer_tokens - 1:
            raise TextTooLongError(
                f"{self.name}: max_tokens must be in 1..{self.max_answer_tokens - 1}, "
                f"got {max_tokens}"
            )
        with torch.no_grad():
            states, mask = self._encode(image_tokens, prompts)
            ids = self._blip.text_decoder.generate(
                input_ids=torch.full((len(states), 1), self.start_id, device=self.device),
                encoder_hidden_states=states,
                encoder_attention_mask=mask,
                eos_token_id=self.end_id,
                pad_token_id=self.tokenizer.pad_token_id,
                max_new_tokens=max_tokens,
                num_beams=1,
                do_sample=False,
            )
        texts: list[str] = self.tokenizer.batch_decode(ids[:, 1:], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, start and end included, to be held against `max_..._tokens`."""
        return count_framed(self.tokenizer, texts)

    def _encode(self, image_tokens: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States of the questions (B, L, W) and their mask (B, L), int64."""
        expected = (len(prompts), self.num_image_tokens, self.image_token_width)
        if tuple(image_tokens.shape) != expected:
            raise ValueError(
                f"image_tokens: expected {expected} for {len(prompts)} prompts, got "
                f"{tuple(image_tokens.shape)}"
            )
        ids, mask = self._pad(self._framed(prompts, self.max_prompt_tokens, "prompt"))
        states: Tensor = self._blip.text_encoder(
            input_ids=ids,
            attention_mask=mask.long(),
            encoder_hidden_states=image_tokens.to(self.device),
        ).last_hidden_state
        return states, mask.long()

    def _framed(self, texts: Sequence[str], room: int, what: str) -> list[list[int]]:
        return framed_ids(self.tokenizer, texts, room=room, what=what, name=self.name)

    def _pad(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        return padded(rows, self.tokenizer.pad_token_id, self.device)


def load_blip_vqa(config: BackboneConfig, device: torch.device | str = "cpu") -> BlipVqaBackbone:
    """Load a BLIP for questions, in fp32.

    Args:
        config: `weights` is a local folder of transformers, or a hub id such as
            `Salesforce/blip-vqa-base`; `sha256` is that of model.safetensors.
        device: Where the model will run.

    Raises:
        BackboneError: The checkpoint is missing, damaged or of another architecture.
    """
    parts = load_parts(config)
    model = parts.model.eval().requires_grad_(False).to(device)
    logger.info("loaded %s from %s", config.model, config.weights)
    return backbone_of(config.model, parts, model)


def backbone_of(name: str, parts: BlipVqaParts, model: Any) -> BlipVqaBackbone:
    """Wrap a loaded model; `model` stays the caller's: its mode and gradients are not touched."""
    vision, text = model.config.vision_config, model.config.text_config
    processor = parts.image_processor
    preprocess, values = squash_to(
        parts.side, processor["image_mean"], processor["image_std"], parts.interpolation
    )
    positions = int(text.max_position_embeddings)
    return BlipVqaBackbone(
        name=name,
        model=model,
        tokenizer=parts.tokenizer,
        preprocess=preprocess,
        image_size=(parts.side, parts.side),
        num_image_tokens=(int(vision.image_size) // int(vision.patch_size)) ** 2 + 1,
        image_token_width=int(vision.hidden_size),
        max_prompt_tokens=positions,
        max_answer_tokens=positions,
        start_id=int(text.bos_token_id),
        end_id=int(text.sep_token_id),
        fingerprint=hash_model(settings_of(model.config, ("vision_config", "text_config")), model),
        preprocess_fingerprint=sha256_json(values),
    )
