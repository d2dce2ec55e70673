"""A BLIP for questions of a few thousand random weights and a vocabulary of a few words."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BlipConfig,
    BlipForQuestionAnswering,
    BlipImageProcessor,
    PreTrainedTokenizerFast,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
TEXT = "is there a dog ? what does the image show yes no and cat on street red blue hm"
SIZE = 16


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, framed as `[CLS] text [SEP]`."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *TEXT.split()])}
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        bos_token="[DEC]",
    )


def write_tiny_blip_vqa(folder: Path, seed: int = 0) -> Path:
    """Write the folder as transformers does; 16 px in patches of 8 -> 4 + 1 image tokens.

    transformers' decoder wants vision and text of one width.
    """
    tokenizer = make_tokenizer()
    config = BlipConfig(
        vision_config={
            "hidden_size": 20, "intermediate_size": 20, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": SIZE, "patch_size": 8,
            "initializer_range": 0.3,
        },
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 20, "encoder_hidden_size": 20,
            "intermediate_size": 28, "num_hidden_layers": 2, "num_attention_heads": 5,
            "max_position_embeddings": 12, "bos_token_id": 5, "sep_token_id": 3,
            "pad_token_id": 0, "eos_token_id": 3, "initializer_range": 0.6,
            "is_decoder": True,
        },
        initializer_range=0.6,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BlipForQuestionAnswering(config)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if value.ndim > 1:
                    value.normal_(std=0.5)
                elif name.endswith("cls.predictions.bias"):
                    value.normal_()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    BlipImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder
