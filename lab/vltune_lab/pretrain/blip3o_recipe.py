"""blip3o-compact: its sizes, and the recipe of its three stages."""

from dataclasses import dataclass, field

from vltune.backbones.blip3o_config import (
    Blip3oSettings,
    DecoderSettings,
    FlowSettings,
    GenerationSettings,
    TowerSettings,
)
from vltune.config import ConfigError
from vltune_lab.pretrain.florence2_recipe import KindWeights
from vltune_lab.pretrain.janus_recipe import TagWeights
from vltune_lab.scenes.questions import KINDS

COMPACT = Blip3oSettings(
    vision=TowerSettings(
        kind="timm",
        settings={"name": "vltune_convstem_vit_p8"},
        image_size=64,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        num_tokens=64,
        width=128,
    ),
    language={
        "vocab_size": 2048,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 192,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    },
    num_queries=16,
    flow=FlowSettings(width=256, depth=6, num_heads=4, ffn_width=768, modulation_width=256),
    decoder=DecoderSettings(channels=(128, 96, 48), shuffle=2),
    max_prompt_tokens=64,
    max_answer_tokens=64,
    merge=2,
    generation=GenerationSettings(guidance=3.0, steps=12),
)
"""The frozen tower is clip-compact's trunk, the tokenizer florence2-compact's."""


@dataclass(frozen=True)
class StageRecipe:
    """One stage.

    Attributes:
        steps: Optimiser steps.
        batch_size: Images a step.
        learning_rate: Peak of AdamW; linear warm-up, then cosine to zero.
        weight_decay: Of matrices.
        warmup_steps: Of the linear rise.
    """

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.02
    warmup_steps: int = 200

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size) < 1 or not 0 < self.learning_rate < 1:
            raise ConfigError("pretrain: needs steps and batch_size >= 1, 0 < learning_rate < 1")


@dataclass(frozen=True)
class Blip3oRecipe:
    """The recipe of blip3o-compact.

    Attributes:
        seed: Of weights and data.
        statistics_images: Images from which mean and deviation of the features are taken.
        decoder: Stage 1, features to pixels.
        understanding: Stage 2, projector and language model on questions and captions.
        drawing: Stage 3, image queries and flow transformer; and the language model, unless frozen.
        questions: Questions an image in stage 2.
        captions: Captions a step in stage 2.
        text_share: Weight of understanding beside drawing in stage 3, so that the language model
            does not forget; 0 freezes the language model instead, as BLIP3-o's sequential training.
        kinds: Weights of the kinds of questions.
        tags: Weights of the families of prompts.
        first_steps: Steps with prompts of the first twelve classes only.
        variety: Of the pictures' layout, as in `PromptPainter`.
        plain: Share of pictures with a plain background.
        checkpoint_every: Steps between checkpoints.
    """

    seed: int = 2026
    statistics_images: int = 2048
    decoder: StageRecipe = field(default_factory=lambda: StageRecipe(4000, 32, 1e-3))
    understanding: StageRecipe = field(default_factory=lambda: StageRecipe(6000, 32, 1e-3))
    drawing: StageRecipe = field(default_factory=lambda: StageRecipe(16000, 24, 1e-3))
    questions: int = 3
    captions: int = 6
    text_share: float = 0.5
    kinds: KindWeights = field(default_factory=KindWeights)
    tags: TagWeights = field(default_factory=TagWeights)
    first_steps: int = 4000
    variety: float = 0.0
    plain: float = 0.8
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        if min(self.questions, self.captions) < 1 or self.statistics_images < 2:
            raise ConfigError("pretrain: needs questions, captions >= 1, statistics_images >= 2")
        if not 0 <= self.text_share <= 10:
            raise ConfigError(f"pretrain: text_share is {self.text_share}, expected 0 to 10")
        if set(vars(self.kinds)) != set(KINDS):
            raise ConfigError(f"pretrain: kinds must be those of the world, {KINDS}")
