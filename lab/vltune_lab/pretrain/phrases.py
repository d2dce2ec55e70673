"""Texts -> unit-norm features, with gradients, no wider than the longest text."""

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor


def encode_phrases(
    model: open_clip.CLIP, tokenizer: open_clip.SimpleTokenizer, texts: list[str]
) -> Tensor:
    """Unit-norm text features (N, D); positions after the last end token are cut: exact."""
    tokens = tokenizer(texts)
    length = int((tokens == tokenizer.eot_token_id).float().argmax(dim=1).max()) + 1
    tokens = tokens[:, :length].to(model.text_projection.device)
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    x = x[torch.arange(len(x)), tokens.argmax(dim=-1)] @ model.text_projection
    return F.normalize(x, dim=-1)
