import pytest
import torch
from torch.nn import functional as F

from vltune.adapters import ConditionAdapters

B, M, K, C, D, r = 2, 3, 5, 7, 11, 4


def trained_adapters() -> ConditionAdapters:
    generator = torch.Generator().manual_seed(0)
    adapters = ConditionAdapters(K, D, r, alpha=8.0, generator=generator)
    with torch.no_grad():
        adapters.up.copy_(torch.randn(K, r, D, generator=generator) * 0.3)
    return adapters


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    patches = F.normalize(torch.randn(B, M, D, generator=generator), dim=-1)
    return patches, F.normalize(torch.randn(K, C, D, generator=generator), dim=-1)


def test_one_number_by_hand() -> None:
    """D = r = 1, V = 2, down = 3, up = 5, alpha / r = 2: V_k = 2 + 2 * (2 * 3) * 5 = 62."""
    adapters = ConditionAdapters(1, 1, 1, 2.0, torch.Generator())
    with torch.no_grad():
        adapters.down.fill_(3.0)
        adapters.up.fill_(5.0)
    assert adapters(torch.full((1, 1, 1), 2.0)).item() == 62.0


def test_start_is_the_frozen_model() -> None:
    adapters = ConditionAdapters(K, D, r, 8.0, torch.Generator().manual_seed(0))
    patches, texts = inputs()
    assert torch.equal(adapters(patches), patches.unsqueeze(1).expand(B, K, M, D))
    plain = torch.einsum("bmd,kcd->bkmc", patches, texts)
    assert torch.allclose(adapters.cosine_similarity(patches, texts), plain, atol=1e-6)


def test_low_rank_form_equals_the_plain_path_with_gradients() -> None:
    adapters, (patches, texts) = trained_adapters(), inputs()
    weights = torch.randn(B, K, M, C, generator=torch.Generator().manual_seed(2))
    patches.requires_grad_()
    texts.requires_grad_()
    leaves = [adapters.down, adapters.up, patches, texts]
    fast = adapters.cosine_similarity(patches, texts)
    plain = torch.einsum("bkmd,kcd->bkmc", F.normalize(adapters(patches), dim=-1), texts)
    assert torch.allclose(fast, plain, atol=1e-5)
    fast_gradients = torch.autograd.grad((fast * weights).sum(), leaves)
    plain_gradients = torch.autograd.grad((plain * weights).sum(), leaves)
    for ours, theirs in zip(fast_gradients, plain_gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_one_set_of_texts_serves_all_conditions() -> None:
    adapters, (patches, texts) = trained_adapters(), inputs()
    one = adapters.cosine_similarity(patches, texts[:1])
    many = adapters.cosine_similarity(patches, texts[:1].expand(K, C, D))
    assert torch.equal(one, many)


def test_same_generator_same_start_and_wrong_sizes_are_refused() -> None:
    first, second = (
        ConditionAdapters(K, D, r, 8.0, torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(first.down, second.down)
    with pytest.raises(ValueError, match="rank >= 1"):
        ConditionAdapters(K, D, 0, 8.0, torch.Generator())


def test_features_of_another_backbone_are_refused() -> None:
    adapters, (patches, texts) = trained_adapters(), inputs()
    with pytest.raises(ValueError, match=r"\(B, M, 11\), got \(2, 3, 10\)"):
        adapters.cosine_similarity(patches[..., 1:], texts)
    with pytest.raises(ValueError, match=r"got \(2, 7, 11\)"):
        adapters.cosine_similarity(patches, texts[:2])
