"""The files of janus-compact beside its weights: architecture, tokenizer, preprocessing."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors
from transformers import JanusConfig, PreTrainedTokenizerFast

from vltune.backbones.janus_settings import OWN_CONFIG, JanusSettings
from vltune.backbones.transformers_checkpoint import PREPROCESSOR
from vltune.config import to_mapping
from vltune.files import write_json_atomic

SETTINGS = JanusSettings(
    norm_groups=8,
    pixel_shuffle=8,
    before_image="",
    after_image="{prompt}",
    before_answer="",
    drawing="{prompt}",
    guidance=3.0,
    temperature=0.8,
)
SIDE, PATCH, WIDTH, CODES = 64, 8, 192, 1024
VISION_WIDTH, VISION_LAYERS = 128, 6
SPECIAL = {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"}


def write_folder(folder: Path, tokenizer_of: Path) -> None:
    """Write config.json, vltune_janus.json, preprocessor_config.json and the tokenizer.

    Args:
        folder: Of the model.
        tokenizer_of: florence2-compact; its tokenizer gets two more special tokens.
    """
    tokenizer = extend_tokenizer(tokenizer_of / "tokenizer.json")
    tokenizer.save_pretrained(folder)
    config = {
        **JanusConfig(**architecture(tokenizer)).to_diff_dict(),
        "architectures": ["JanusForConditionalGeneration"],
    }
    write_json_atomic(folder / "config.json", config)
    write_json_atomic(folder / OWN_CONFIG, to_mapping(SETTINGS))
    write_json_atomic(
        folder / PREPROCESSOR,
        {
            "image_processor_type": "JanusImageProcessor",
            "size": {"height": SIDE, "width": SIDE},
            "min_size": 8,
            "resample": 3,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
    )


def extend_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """florence2-compact's tokenizer with an image's start and end, framed by a start token."""
    inner = Tokenizer.from_file(str(path))
    inner.add_special_tokens([AddedToken(name, special=True) for name in ("<boi>", "<eoi>")])
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=SPECIAL,
        padding_side="left",
    )


def architecture(tokenizer: Any) -> dict[str, Any]:
    """Arguments of JanusConfig."""
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {
        "model_type": "llama",
        "vocab_size": 8 * -(-len(tokenizer) // 8),
        "hidden_size": WIDTH,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        **ids,
    }
    vision = {
        "hidden_size": VISION_WIDTH,
        "num_hidden_layers": VISION_LAYERS,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": PATCH,
        "projection_dim": WIDTH,
        "num_image_tokens": (SIDE // PATCH) ** 2,
    }
    pixels = {
        "embed_dim": 8,
        "num_embeddings": CODES,
        "latent_channels": 64,
        "in_channels": 3 * SETTINGS.pixel_shuffle**2,
        "out_channels": 3 * SETTINGS.pixel_shuffle**2,
        "base_channels": 96,
        "channel_multiplier": [1],
        "num_res_blocks": 1,
        "num_patches": SIDE // PATCH,
        "projection_dim": WIDTH,
        "image_token_embed_dim": WIDTH,
    }
    return {
        "text_config": text,
        "vision_config": vision,
        "vq_config": pixels,
        "image_token_id": tokenizer.image_token_id,
        "tie_word_embeddings": True,
        **ids,
    }
