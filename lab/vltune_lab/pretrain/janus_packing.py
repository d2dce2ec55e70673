"""Several questions about one image in one sequence: the image passes the language model once.

Each question sees the image and itself, and stands at the positions that it would have alone, so
the losses are those of `JanusBackbone.loss` (a test compares them) at a third of the cost.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from vltune.backbones.janus import JanusBackbone


def packed_losses(
    backbone: JanusBackbone, image_tokens: Tensor, triples: Sequence[tuple[int, str, str]]
) -> Tensor:
    """Mean cross entropy of each answer's tokens, (Q,), nats; differentiable.

    Args:
        backbone: Its model may be in training.
        image_tokens: (B, M, D).
        triples: Q of (image, prompt, answer), those of an image next to each other.
    """
    model = backbone._janus
    words = model.get_input_embeddings()
    rows, owners, places, targets = [], [], [], []
    for image, group in groupby(triples, key=lambda triple: triple[0]):
        ids, owner, place, wanted = _lay_out(backbone, [pair[1:] for pair in group])
        embedded = words(torch.tensor(ids, device=image_tokens.device))
        start = 2  # <bos> <boi>
        rows.append(
            torch.cat([embedded[:start], image_tokens[image].to(embedded), embedded[start:]])
        )
        owners.append(torch.tensor(owner))
        places.append(torch.tensor(place))
        targets.append(torch.tensor(wanted))
    embeddings = pad_sequence(rows, batch_first=True)
    owner = pad_sequence(owners, batch_first=True, padding_value=-1)
    mask = _see(owner)[:, None].to(embeddings.device)
    states = model.model.language_model(
        inputs_embeds=embeddings,
        attention_mask=mask,
        position_ids=pad_sequence(places, batch_first=True).to(embeddings.device),
        use_cache=False,
    ).last_hidden_state
    wanted = pad_sequence(targets, batch_first=True, padding_value=-1).to(embeddings.device)
    said = wanted >= 0
    losses = F.cross_entropy(model.lm_head(states[said]).float(), wanted[said], reduction="none")
    # Answers follow one another in `triples`' order.
    question = owner.to(said.device) + _first_question(owner)[:, None].to(said.device)
    number = question[said] - 1
    total = torch.zeros(len(triples), device=losses.device).index_add(0, number, losses)
    count = torch.bincount(number, minlength=len(triples))
    return total / count


def _lay_out(
    backbone: JanusBackbone, pairs: Sequence[tuple[str, str]]
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Ids without the image, and for every position with it: question (0: image), place, target.

    A target is the id that follows, where an answer's token follows; -1 elsewhere.
    """
    M = backbone.num_image_tokens
    before, (end, *_) = backbone.texts.around_image("")
    ids = [*before, end]
    prefix = len(before) + M + 1
    owner, place, wanted = [0] * prefix, list(range(prefix)), [-1] * prefix
    for number, (prompt, answer) in enumerate(pairs, start=1):
        _, (_, *asked) = backbone.texts.around_image(prompt)
        said = backbone.texts.answer(answer)
        ids += [*asked, *said[:-1]]
        length = len(asked) + len(said) - 1
        owner += [number] * length
        place += list(range(prefix, prefix + length))
        wanted += [-1] * (len(asked) - 1) + said
    return ids, owner, place, wanted


def _see(owner: Tensor) -> Tensor:
    """Which position sees which, (B, L, L), bool."""
    L = owner.shape[1]
    causal = torch.ones(L, L, dtype=torch.bool).tril()
    same = owner[:, :, None] == owner[:, None, :]
    return causal & (same | (owner == 0)[:, None, :])


def _first_question(owner: Tensor) -> Tensor:
    """Questions of the rows before each row, (B,)."""
    counts = owner.max(dim=1).values.clamp(min=0)
    return counts.cumsum(0) - counts
