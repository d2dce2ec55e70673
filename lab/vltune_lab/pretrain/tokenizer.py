"""The tokenizer of florence2-compact: a byte-level BPE of the world's words.

Any text can be written and read back, because every byte has a token; the words of the scenes, and
German, French and technical words of `lexicon.yaml`, have short codes. Special tokens have BART's
numbers, so that the model's configuration looks like that of Florence-2.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from vltune.config import from_mapping, read_mapping

LEXICON = Path(__file__).with_name("lexicon.yaml")
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<image>")


@dataclass(frozen=True)
class Lexicon:
    """Words beside those of the scenes.

    Attributes:
        classes: English class name -> [German, French].
        words: Groups of words.
        patterns: Sentences with places for words.
    """

    classes: dict[str, tuple[str, ...]]
    words: tuple[tuple[str, ...], ...]
    patterns: tuple[str, ...]


@cache
def load_lexicon(path: Path = LEXICON) -> Lexicon:
    """Read the lexicon."""
    return from_mapping(Lexicon, read_mapping(path), str(path))


def lexicon_text(rng: np.random.Generator) -> str:
    """A phrase of lexicon words in one of its patterns; seldom a row of random letters."""
    lexicon = load_lexicon()
    names = sorted(lexicon.classes)
    name = names[int(rng.integers(len(names)))]
    german, french = lexicon.classes[name]
    word, other = (_word(lexicon, rng) for _ in range(2))
    pattern = lexicon.patterns[int(rng.integers(len(lexicon.patterns)))]
    if rng.random() < 0.1:
        letters = rng.integers(97, 123, size=int(rng.integers(2, 9)))
        word = "".join(chr(letter) for letter in letters)
    return pattern.format(
        e=name, d=german, f=french, w=word, v=other,
        n=int(rng.integers(100)), m=int(rng.integers(10)),
    )  # fmt: skip


def _word(lexicon: Lexicon, rng: np.random.Generator) -> str:
    group = lexicon.words[int(rng.integers(len(lexicon.words)))]
    return group[int(rng.integers(len(group)))]


def train_tokenizer(texts: Iterator[str], vocab_size: int, folder: Path) -> PreTrainedTokenizerFast:
    """Learn the merges from `texts` and write tokenizer.json and tokenizer_config.json."""
    inner = Tokenizer(models.BPE())
    # A word has the same code at the start of a text as inside it.
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="right",
    )
    tokenizer.save_pretrained(folder)
    return tokenizer
