"""Condition prompts: learnable context -> text features of every condition and class.

Prompt of condition k and class c (FedMPT, arXiv 2605.28347, section on condition prompts)::

    [SOS] u_k,1..u_k,Lcond  CONDITION_k words  w_1..w_Lcls  CLASS_c words . [EOS]

u (one set a condition) and w (one set for all) are learnable and *shared* with the federation;
the word embeddings and the text tower are frozen. Everything learnable stands before the class
words, so a causal tower runs the K prefixes once and each class only behind them.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONTEXT_WORDS = "a photo of a"
ZERO_SHOT_TEMPLATES = ("a photo of a {}.",)
# Noise of the initial context, relative to the spread of its words' embeddings: breaks the tie
# between conditions without leaving the neighbourhood of the zero-shot prompts.
CONTEXT_NOISE = 0.02

PromptPath = Literal["auto", "shared", "plain", "full"]


class PromptError(ValueError):
    """A prompt cannot be built; the message names it."""


class PromptTower(Protocol):
    """What prompts need of a frozen text tower (`backbones.text_tower.TextTower`)."""

    start_ids: list[int]
    end_id: int
    pad_id: int
    context_length: int
    is_causal: bool
    can_share_prefix: bool

    @property
    def device(self) -> torch.device:
        """Where the tower runs."""

    def word_ids(self, text: str) -> list[int]:
        """Token ids of the words alone."""

    def embed(self, ids: Tensor | Sequence[int]) -> Tensor:
        """Frozen token embeddings (..., W)."""

    def encode_embeddings(self, embeddings: Tensor, ends: Tensor) -> Tensor:
        """Whole texts (N, L, W) -> (N, D)."""

    def encode_prefix(self, embeddings: Tensor) -> Any:
        """Prefixes (G, P, W) -> what `encode_suffixes` needs of them."""

    def encode_suffixes(self, prefix: Any, embeddings: Tensor, ends: Tensor) -> Tensor:
        """Suffixes (C, Q, W) behind each of G prefixes -> (G, C, D)."""


class PromptBackbone(Protocol):
    """What prompts need of a backbone (`backbones.clip.ClipBackbone`)."""

    @property
    def text_tower(self) -> PromptTower:
        """The frozen text tower."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Whole texts -> (N, D), unit norm, without gradients."""


class _Group(NamedTuple):
    """Conditions of equal token length, which run as one batch.

    Attributes:
        conditions: Indices of the conditions, G of them.
        words: Frozen embeddings of their words, (G, n, W).
    """

    conditions: list[int]
    words: Tensor


class ConditionPrompts(nn.Module):
    """Learnable prompts in front of a frozen text tower; the state dict holds nothing but them.

    Attributes:
        ctx_condition: u, (K, Lcond, W).
        ctx_class: w, (Lcls, W).
        path: The path in use: ``shared``, ``plain`` or ``full``.
    """

    def __init__(
        self,
        backbone: PromptBackbone,
        conditions: Sequence[str],
        classnames: Sequence[str],
        *,
        condition_length: int,
        class_length: int,
        generator: torch.Generator,
        path: PromptPath = "auto",
    ) -> None:
        """Build the prompts of K conditions and C classes.

        Args:
            backbone: Frozen CLIP.
            conditions: K texts; every token is kept.
            classnames: C texts; every token is kept.
            condition_length: Lcond >= 0.
            class_length: Lcls >= 0; not both zero.
            generator: Seeds the small noise of the initial context.
            path: ``shared`` runs prefixes once; ``plain`` runs each prompt whole, cut behind the
                longest; ``full`` runs it at the tower's context length, as published code does.
                ``auto`` is ``shared`` where the tower allows it, else ``plain``.

        Raises:
            PromptError: Nothing to prompt, a prompt longer than the tower's context, or ``shared``
                with a tower that is not causal.
        """
        super().__init__()
        tower = backbone.text_tower
        # No submodule, no registered buffer: the tower's weights are frozen and never leave.
        self._tower = tower
        self.path = _choose_path(path, tower)
        if not conditions or not classnames or condition_length + class_length < 1:
            raise PromptError(
                f"prompts need conditions, classes and context, got {len(conditions)} conditions, "
                f"{len(classnames)} classes, lengths {condition_length} and {class_length}"
            )
        self.num_classes = len(classnames)
        self._groups = _group_by_length(tower, conditions)
        grouped = [k for group in self._groups for k in group.conditions]
        self._order = torch.tensor(grouped).argsort()
        self._start = tower.embed(tower.start_ids)
        self._suffixes, self._ends = _suffixes(tower, classnames)
        longest = max(group.words.shape[1] for group in self._groups)
        prefix_length = len(self._start) + condition_length + longest + class_length
        _check_length(tower, prefix_length, int(self._ends.max()) + 1, conditions, classnames)

        words = tower.embed(tower.word_ids(CONTEXT_WORDS))
        ctx_condition = _last_words(words, condition_length).repeat(len(conditions), 1, 1)
        self.ctx_condition = nn.Parameter(_disturb(ctx_condition, words, generator))
        self.ctx_class = nn.Parameter(_disturb(_last_words(words, class_length), words, generator))

    def forward(self) -> Tensor:
        """Text features of every condition and class, (K, C, D), unit norm."""
        features = torch.cat([self._encode_group(self._prefixes(g)) for g in self._groups])
        return F.normalize(features[self._order], dim=-1)

    def _prefixes(self, group: _Group) -> Tensor:
        """Embeddings (G, P, W) of everything before the class words."""
        size = len(group.conditions)
        start = self._start.expand(size, -1, -1)
        ctx_class = self.ctx_class.expand(size, -1, -1)
        ctx_condition = self.ctx_condition[group.conditions]
        return torch.cat([start, ctx_condition, group.words, ctx_class], dim=1)

    def _encode_group(self, prefixes: Tensor) -> Tensor:
        tower = self._tower
        size, prefix_length, _ = prefixes.shape
        room = tower.context_length - prefix_length
        if self.path != "full" and tower.is_causal:
            room = int(self._ends.max()) + 1
        suffixes = self._suffixes[:, :room]
        if self.path == "shared":
            return tower.encode_suffixes(tower.encode_prefix(prefixes), suffixes, self._ends)
        repeated = prefixes.repeat_interleave(self.num_classes, dim=0)
        whole = torch.cat([repeated, suffixes.repeat(size, 1, 1)], dim=1)
        ends = (self._ends + prefix_length).repeat(size)
        return tower.encode_embeddings(whole, ends).reshape(size, self.num_classes, -1)


def _choose_path(path: PromptPath, tower: PromptTower) -> PromptPath:
    if path == "auto":
        return "shared" if tower.can_share_prefix else "plain"
    if path == "shared" and not tower.can_share_prefix:
        raise PromptError(
            "prompt path 'shared' needs a causal text tower; this one is not: use 'auto' or 'plain'"
        )
    if path not in ("shared", "plain", "full"):
        raise PromptError(f"prompt path: expected auto, shared, plain or full, got {path!r}")
    return path


def _group_by_length(tower: PromptTower, conditions: Sequence[str]) -> list[_Group]:
    ids = [_words_of(tower, condition, "condition") for condition in conditions]
    groups = []
    for length in sorted({len(words) for words in ids}):
        members = [k for k, words in enumerate(ids) if len(words) == length]
        groups.append(_Group(members, torch.stack([tower.embed(ids[k]) for k in members])))
    return groups


def _suffixes(tower: PromptTower, classnames: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Embeddings (C, Q, W) of "CLASS words . [EOS]" padded to the context, and ends (C,)."""
    full_stop = tower.word_ids(".")
    rows, ends = [], []
    for classname in classnames:
        row = [*_words_of(tower, classname, "class"), *full_stop, tower.end_id]
        ends.append(len(row) - 1)
        rows.append(row + [tower.pad_id] * (tower.context_length - len(row)))
    length = max(len(row) for row in rows)  # above the context only when a class does not fit
    ids = [row + [tower.pad_id] * (length - len(row)) for row in rows]
    return tower.embed(torch.tensor(ids)), torch.tensor(ends, device=tower.device)


def _words_of(tower: PromptTower, text: str, kind: str) -> list[int]:
    ids = tower.word_ids(text)
    if not ids:
        raise PromptError(f"{kind} {text!r} has no tokens; give it a name")
    return ids


def _check_length(
    tower: PromptTower,
    prefix_length: int,
    suffix_length: int,
    conditions: Sequence[str],
    classnames: Sequence[str],
) -> None:
    if prefix_length + suffix_length <= tower.context_length:
        return
    condition = max(conditions, key=lambda text: len(tower.word_ids(text)))
    classname = max(classnames, key=lambda text: len(tower.word_ids(text)))
    raise PromptError(
        f"the prompt of condition {condition!r} and class {classname!r} has "
        f"{prefix_length + suffix_length} tokens, the text tower takes {tower.context_length}. "
        "Shorten the condition, the class name or the context lengths."
    )


def _last_words(words: Tensor, length: int) -> Tensor:
    """The last `length` tokens of the words repeated, (length, W): "of a" for length 2."""
    repeats = -(-length // len(words))
    repeated = words.repeat(max(repeats, 1), 1)
    return repeated[len(repeated) - length :].clone()


def _disturb(context: Tensor, words: Tensor, generator: torch.Generator) -> Tensor:
    # Drawn on the CPU, where the same seed gives the same noise at every site.
    noise = torch.randn(context.shape, generator=generator).to(context)
    return context + CONTEXT_NOISE * words.std() * noise


def zero_shot_text_features(
    backbone: PromptBackbone,
    classnames: Sequence[str],
    templates: Sequence[str] = ZERO_SHOT_TEMPLATES,
) -> Tensor:
    """Mean text features of "a photo of a CLASS." over templates, (C, D), unit norm.

    Raises:
        PromptError: A template has no place for the class name.
    """
    _check_templates(templates)
    texts = [template.format(name) for name in classnames for template in templates]
    features = backbone.encode_texts(texts).reshape(len(classnames), len(templates), -1)
    return F.normalize(features.mean(dim=1), dim=-1)


def condition_text_features(
    backbone: PromptBackbone,
    conditions: Sequence[str],
    classnames: Sequence[str],
    template: str = f"{CONTEXT_WORDS} {{}} {CONTEXT_WORDS} {{}}.",
) -> Tensor:
    """Text features of the same prompts without anything learnable, (K, C, D), unit norm."""
    _check_templates([template], places=2)
    texts = [template.format(k, c) for k in conditions for c in classnames]
    return backbone.encode_texts(texts).reshape(len(conditions), len(classnames), -1)


def _check_templates(templates: Sequence[str], places: int = 1) -> None:
    for template in templates:
        if template.count("{}") != places:
            raise PromptError(f"template {template!r}: expected {places} times {{}}")
    if not templates:
        raise PromptError("zero-shot text features need at least one template")
