"""Start one head of the encoder so that a word looks at the image tokens that show it.

Answering "Where is the dog?" needs a word that finds its image tokens and brings back where they
are. From a random start that circuit did not form: after 1,600 steps of the language model
positions were still answered as without the image, and presence hardly better. What is missing is
given here once, before the language model's first step:

* image tokens get codes of their row and column, in directions that say no class, colour or place
  (BART's positions are forty times shorter than an image token, so that its place was drowned);
* the first head of the first layer compares words and image tokens by what the grounding head
  reads, is pulled towards image tokens, and carries over their codes and their content;
* the words top, bottom, left, right and centre lean towards the codes that they name.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Florence2ForConditionalGeneration

from vltune_lab.pretrain.grounding import GroundingHead

POINTER = 4.0
"""Length of the code that all image tokens share; an image token has sqrt(192) = 13.9."""
CODE = 3.0
"""Length of the code of a row, and of a column."""
MATCH = 0.7
"""Scale of queries and keys: a word and its image token differ by about 5 from others."""
LEAN = 0.7
"""Length of the code added to a word of position."""
PULL = 15.0
"""Query towards the shared code: more than a word's likeness to itself."""
_FIRST_POSITION = 3
"""Row of BART's position table of the first image token behind the pooled one (two are unused)."""


def aim_attention(
    model: Florence2ForConditionalGeneration,
    tokenizer: Any,
    head: GroundingHead,
    *,
    side: int,
    seed: int,
) -> None:
    """Write position codes, the first head's matrices and the words of position, in place.

    Args:
        model: Its encoder begins with `side` * `side` + 1 image tokens, the pooled one first.
        tokenizer: Gives the words' tokens.
        head: Trained in the grounding steps.
        side: Cells in a row.
        seed: Of the codes' directions.

    Raises:
        ValueError: The head is too narrow for the codes.
    """
    encoder = model.model.language_model.encoder
    attention = encoder.layers[0].self_attn
    d = attention.head_dim
    if d <= 2 * side:
        raise ValueError(f"a head of {d} values cannot carry {2 * side} codes and content")
    with torch.no_grad():
        content = torch.linalg.svd(_centred(head.covers.weight), full_matrices=False)[2]
        pointer, rows, columns = _free_directions(head, side, seed).split([1, side, side])
        for cell in range(side * side):
            code = CODE * (rows[cell // side] + columns[cell % side]) + POINTER * pointer[0]
            encoder.embed_positions.weight[_FIRST_POSITION + cell] += code
        match = content[: d - 1]
        attention.q_proj.weight[:d] = torch.cat([MATCH * match, torch.zeros_like(pointer)])
        attention.k_proj.weight[:d] = torch.cat([MATCH * match, pointer])
        attention.q_proj.bias[:d] = 0
        attention.q_proj.bias[d - 1] = PULL
        attention.k_proj.bias[:d] = 0
        carried = torch.cat([rows, columns, content[: d - 2 * side]])
        attention.v_proj.weight[:d] = carried
        attention.v_proj.bias[:d] = 0
        attention.out_proj.weight[:, :d] = carried.T
        _lean_words(model.get_input_embeddings().weight, tokenizer, rows, columns)


def _lean_words(table: Tensor, tokenizer: Any, rows: Tensor, columns: Tensor) -> None:
    """Add to each word of position the code that it names; rows and columns are (side, D)."""
    inner = (rows[1:-1].sum(dim=0) + columns[1:-1].sum(dim=0)) / 2
    named = {
        "top": rows[0],
        "bottom": rows[-1],
        "left": columns[0],
        "right": columns[-1],
        "centre": inner,
    }
    for word, code in named.items():
        for token in tokenizer(word, add_special_tokens=False)["input_ids"]:
            table[token] += LEAN * code


def _centred(weight: Tensor) -> Tensor:
    return weight - weight.mean(dim=0)


def _free_directions(head: GroundingHead, side: int, seed: int) -> Tensor:
    """Orthonormal directions (1 + 2 * side, D) in which the head reads nothing."""
    taken = torch.cat([_centred(part.weight) for part in (head.covers, head.colours, head.scenes)])
    if len(taken) + 1 + 2 * side > taken.shape[1]:
        raise ValueError(
            f"{len(taken)} readings leave no room for {1 + 2 * side} codes in {taken.shape[1]}"
        )
    unread = torch.linalg.svd(taken, full_matrices=True)[2][len(taken) :]
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(len(unread), 1 + 2 * side, generator=generator).to(unread)
    return torch.linalg.qr(mix)[0].T @ unread
