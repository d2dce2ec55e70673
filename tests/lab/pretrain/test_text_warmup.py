import math
from pathlib import Path

import pytest
import torch

from vltune_lab.pretrain.phrases import encode_phrases
from vltune_lab.pretrain.state import build_model
from vltune_lab.pretrain.text_warmup import agreement_loss, effective_rank, warm_up_text
from vltune_lab.scenes.library import PACKAGED_ASSETS

MODEL = PACKAGED_ASSETS / "clip-compact"
CLASSES = ("cat", "dog", "car", "wine glass", "traffic light", "person")


def test_agreement_loss_by_hand() -> None:
    """Two orthogonal classes, each twice: one candidate at cosine 1, two at 0."""
    phrases = torch.eye(2)
    expected = math.log(math.exp(5) + 2) - 5
    assert agreement_loss(phrases, phrases, 5.0).item() == pytest.approx(expected)
    swapped = agreement_loss(phrases, phrases.flip(0), 5.0).item()
    assert swapped == pytest.approx(math.log(math.exp(5) + 2))


def test_effective_rank_by_hand() -> None:
    """Centred, n orthogonal rows span n - 1 directions alike; a line spans one."""
    assert effective_rank(torch.eye(7)) == pytest.approx(6.0)
    assert effective_rank(torch.arange(5.0)[:, None] * torch.ones(3)) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="equal rows"):
        effective_rank(torch.ones(3, 4))


@pytest.mark.slow
def test_classes_end_apart_in_words_never_trained(tmp_path: Path) -> None:
    """Untrained, every phrase points in much the same direction, whatever its class."""
    model, tokenizer = build_model(MODEL, 3)
    visual = {key: value.clone() for key, value in model.visual.state_dict().items()}
    texts = [f"look at that {name} over there" for name in CLASSES]

    def largest_cosine() -> float:
        with torch.no_grad():
            features = encode_phrases(model, tokenizer, texts)
        return float((features @ features.T).fill_diagonal_(-1).max())

    assert largest_cosine() > 0.5
    rank = warm_up_text(
        model, tokenizer, CLASSES, steps=60, learning_rate=1e-3, weight_decay=0.05, seed=1
    )
    assert rank > len(CLASSES) - 1.5
    assert largest_cosine() < 0.3
    for key, value in model.visual.state_dict().items():
        assert torch.equal(value, visual[key]), key
