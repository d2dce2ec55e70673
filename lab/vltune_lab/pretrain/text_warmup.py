"""Before any image: teach the text tower to tell the classes apart in any phrase.

A text tower that starts at random writes every phrase into much the same direction. Trained with
the images from the start it keeps few directions: 61 classes ended in a space of effective rank
15, in which neither the image trunk nor an adapter can move one class without moving its
neighbours. A minute of phrases alone, two of each class in different words, ends in a simplex.
"""

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from vltune_lab.pretrain.objectives import class_phrases
from vltune_lab.pretrain.phrases import encode_phrases

SCALE = 5.0
"""Of the softmax: low, so that the loss keeps pulling until the classes are a simplex."""
RAMP_STEPS = 50


def agreement_loss(first: Tensor, second: Tensor, scale: float = SCALE) -> Tensor:
    """InfoNCE among the phrases of all classes: a phrase must find its class's other phrase.

    Args:
        first: (C, D), unit norm.
        second: (C, D), unit norm, the same classes in other words.
        scale: Logit scale.
    """
    features = torch.cat([first, second])
    count = len(first)
    itself = torch.eye(2 * count, dtype=torch.bool, device=features.device)
    logits = (scale * features @ features.T).masked_fill(itself, -torch.inf)
    target = torch.arange(2 * count, device=features.device).roll(count)
    return F.cross_entropy(logits, target)


def effective_rank(features: Tensor) -> float:
    """Exponential of the entropy of the centred spectrum (Roy and Vetterli 2007); (C, D) -> [1, C].

    Raises:
        ValueError: All rows are equal: nothing is left after centring.
    """
    singular = torch.linalg.svdvals((features - features.mean(dim=0)).double())
    power = singular.square()
    if not power.sum() > 0:
        raise ValueError("effective rank of equal rows is not defined")
    share = power / power.sum()
    return float(torch.exp(torch.special.entr(share).sum()))


def warm_up_text(
    model: open_clip.CLIP,
    tokenizer: open_clip.SimpleTokenizer,
    classnames: tuple[str, ...],
    *,
    steps: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
) -> float:
    """Train the text tower in place on class phrases alone; return the effective rank reached."""
    parameters = [p for name, p in model.named_parameters() if not name.startswith("visual.")]
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=weight_decay, fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / RAMP_STEPS)
        rng = np.random.Generator(np.random.PCG64([seed, 78, step]))
        phrases = class_phrases(classnames, rng) + class_phrases(classnames, rng)
        first, second = encode_phrases(model, tokenizer, phrases).chunk(2)
        optimizer.zero_grad(set_to_none=True)
        agreement_loss(first, second).backward()  # type: ignore[no-untyped-call] # torch's stub
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    with torch.no_grad():
        phrases = [f"a photo of a {name}." for name in classnames]
        return effective_rank(encode_phrases(model, tokenizer, phrases))
