import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vltune.backbones.clip import BackboneConfig, ClipBackbone, load_clip
from vltune.prompts import (
    ConditionPrompts,
    PromptError,
    condition_text_features,
    zero_shot_text_features,
)

Folder = Callable[..., Path]

# K=5 in three token lengths, C=7 with classes of one to three tokens.
CONDITIONS = ("background", "spatial layout", "lighting", "object pose", "time of day")
CLASSNAMES = ("cat", "traffic light", "dog", "hot dog stand", "sofa", "tv", "bus")


def make(backbone: ClipBackbone, seed: int = 1, **changes: Any) -> ConditionPrompts:
    arguments = {"condition_length": 4, "class_length": 3, "path": "auto", **changes}
    conditions = arguments.pop("conditions", CONDITIONS)
    classnames = arguments.pop("classnames", CLASSNAMES)
    generator = torch.Generator().manual_seed(seed)
    return ConditionPrompts(backbone, conditions, classnames, generator=generator, **arguments)


def features_and_gradients(prompts: ConditionPrompts) -> tuple[Tensor, Tensor, Tensor]:
    features = prompts()
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
    gradients = torch.autograd.grad((features * weights).sum(), list(prompts.parameters()))
    return features.detach(), *gradients


def assert_equal_to_1e_5(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Relative to the largest entry: embeddings of size 0.02 make gradients of size 100."""
    for a, e in zip(actual, expected, strict=True):
        largest = float(e.abs().max())
        assert largest > 1e-2
        torch.testing.assert_close(a, e, atol=1e-5 * max(largest, 1.0), rtol=0)


def cosine_gap(a: Tensor, b: Tensor) -> float:
    return float(1 - (a * b).sum(-1).min())


@pytest.mark.parametrize("custom_text", [False, True])
@pytest.mark.parametrize("other", ["plain", "full"])
def test_shared_prefix_equals_the_plain_path(
    clip_folder: Folder, custom_text: bool, other: str
) -> None:
    """Values and gradients to 1e-5, in both of open_clip's text layouts."""
    backbone = load_clip(BackboneConfig("t", str(clip_folder(custom_text=custom_text))))
    shared = make(backbone)
    assert shared.path == "shared"
    actual = features_and_gradients(shared)
    expected = features_and_gradients(make(backbone, path=other))
    assert_equal_to_1e_5(actual, expected)
    assert actual[0].shape == (5, 7, 11)
    torch.testing.assert_close(actual[0].norm(dim=-1), torch.ones(5, 7))


def test_layer_scale_and_linear_projection(clip_folder: Folder) -> None:
    text = {"ls_init_value": 0.3, "proj_bias": True, "pool_type": "eos", "eos_id": 49407}
    folder = clip_folder(custom_text=True, text_cfg=text)
    backbone = load_clip(BackboneConfig("t", str(folder)))
    actual = features_and_gradients(make(backbone, path="shared"))
    expected = features_and_gradients(make(backbone, path="plain"))
    assert_equal_to_1e_5(actual, expected)


@pytest.mark.parametrize("path", ["shared", "plain", "full"])
def test_word_embeddings_as_context_give_the_written_prompt(
    tiny_clip: ClipBackbone, path: str
) -> None:
    """With the context set to words, the features are open_clip's of the same sentence."""
    prompts = make(tiny_clip, path=path)
    tower = tiny_clip.text_tower
    with torch.no_grad():
        prompts.ctx_condition.copy_(
            tower.embed(tower.word_ids("the very nice old")).repeat(5, 1, 1)
        )
        prompts.ctx_class.copy_(tower.embed(tower.word_ids("behind a big")))
        features = prompts()
        for k, condition in enumerate(CONDITIONS):
            sentences = [f"the very nice old {condition} behind a big {c}." for c in CLASSNAMES]
            expected = tiny_clip.model.encode_text(tiny_clip.tokenizer(sentences), normalize=True)
            torch.testing.assert_close(features[k], expected, atol=1e-5, rtol=0)


def test_training_starts_at_the_neutral_prompts(tiny_clip: ClipBackbone) -> None:
    """The noise is 2 % of the embeddings' spread: the features move by little, and not by zero."""
    start = make(tiny_clip, class_length=4)().detach()
    frozen = condition_text_features(tiny_clip, CONDITIONS, CLASSNAMES)
    assert frozen.shape == (5, 7, 11)
    assert 1e-9 < cosine_gap(start, frozen) < 1e-2


def test_context_of_other_lengths_ends_like_the_words(tiny_clip: ClipBackbone) -> None:
    """The words are repeated and cut at the front: "of a" for 2, "a a photo of a" for 5."""
    tower = tiny_clip.text_tower
    prompts = make(tiny_clip, condition_length=2, class_length=5)
    of_a = tower.embed(tower.word_ids("of a"))
    longer = tower.embed(tower.word_ids("a a photo of a"))
    # 0.02 * std 0.02 * a few sigmas
    torch.testing.assert_close(prompts.ctx_condition[3].detach(), of_a, atol=3e-3, rtol=0)
    torch.testing.assert_close(prompts.ctx_class.detach(), longer, atol=3e-3, rtol=0)


def test_the_seed_alone_decides_the_start(tiny_clip: ClipBackbone) -> None:
    first, again, other = make(tiny_clip), make(tiny_clip), make(tiny_clip, seed=9)
    assert torch.equal(first.ctx_condition, again.ctx_condition)
    assert torch.equal(first.ctx_class, again.ctx_class)
    assert not torch.equal(first.ctx_condition, other.ctx_condition)


def test_only_context_is_state(tiny_clip: ClipBackbone) -> None:
    prompts = make(tiny_clip)
    shapes = {key: tuple(value.shape) for key, value in prompts.state_dict().items()}
    assert shapes == {"ctx_condition": (5, 4, 20), "ctx_class": (3, 20)}
    assert len(list(prompts.parameters())) == 2
    assert list(prompts.buffers()) == []
    prompts().sum().backward()
    assert all(parameter.grad is None for parameter in tiny_clip.model.parameters())


def test_a_copy_shares_the_frozen_tower(tiny_clip: ClipBackbone) -> None:
    prompts = make(tiny_clip)
    twin = copy.deepcopy(prompts)
    assert twin._tower is prompts._tower
    assert twin.ctx_class is not prompts.ctx_class
    torch.testing.assert_close(twin(), prompts())


def test_permuted_conditions_and_classes_permute_the_features(tiny_clip: ClipBackbone) -> None:
    prompts = make(tiny_clip)
    permuted = make(tiny_clip, conditions=CONDITIONS[::-1], classnames=CLASSNAMES[::-1])
    with torch.no_grad():
        permuted.ctx_condition.copy_(prompts.ctx_condition.flip(0))
        permuted.ctx_class.copy_(prompts.ctx_class)
    torch.testing.assert_close(permuted(), prompts().flip(0, 1), atol=1e-6, rtol=0)


def test_a_longer_class_does_not_touch_the_others(tiny_clip: ClipBackbone) -> None:
    with_it = make(tiny_clip)()
    without = make(tiny_clip, classnames=("cat", "dog"))()
    torch.testing.assert_close(with_it[:, [0, 2]], without, atol=1e-6, rtol=0)


def test_gradients_of_other_conditions_are_zero(tiny_clip: ClipBackbone) -> None:
    prompts = make(tiny_clip)
    prompts()[2].sum().backward()
    assert prompts.ctx_condition.grad is not None
    reached = prompts.ctx_condition.grad.abs().amax(dim=(1, 2)) > 0
    assert reached.tolist() == [False, False, True, False, False]


def test_tower_that_is_not_causal_takes_the_plain_path(clip_folder: Folder) -> None:
    """SigLIP's text tower sees everything, also the padding: each prompt runs at full length."""
    text = {"no_causal_mask": True, "pool_type": "last"}
    folder = clip_folder(custom_text=True, text_cfg=text)
    backbone = load_clip(BackboneConfig("t", str(folder)))
    prompts = make(backbone, class_length=4)
    assert prompts.path == "plain"
    tower = backbone.text_tower
    with torch.no_grad():
        words = tower.embed(tower.word_ids("a photo of a"))
        prompts.ctx_condition.copy_(words.repeat(5, 1, 1))
        prompts.ctx_class.copy_(words)
        sentence = f"a photo of a {CONDITIONS[1]} a photo of a {CLASSNAMES[3]}."
        expected = backbone.model.encode_text(backbone.tokenizer([sentence]), normalize=True)
        torch.testing.assert_close(prompts()[1, 3], expected[0], atol=1e-5, rtol=0)
    with pytest.raises(PromptError, match="needs a causal text tower"):
        make(backbone, path="shared")


@pytest.mark.slow  # transformers takes seconds to import
def test_folder_with_its_own_tokenizer(clip_folder: Folder) -> None:
    """A SigLIP folder: ids end with 1, are padded with 0, and nothing stands before the words."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = " ".join(("a photo of .", *CLASSNAMES, *CONDITIONS)).split()
    ids = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *dict.fromkeys(words)])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    text = {
        "hf_tokenizer_name": "nobody/offline",
        "vocab_size": len(ids),
        "no_causal_mask": True,
        "pool_type": "last",
    }
    folder = clip_folder(custom_text=True, text_cfg=text)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    backbone = load_clip(BackboneConfig("t", str(folder)))
    tower = backbone.text_tower
    assert (tower.start_ids, tower.end_id, tower.pad_id) == ([], 1, 0)
    prompts = make(backbone, class_length=4)
    with torch.no_grad():
        context = tower.embed(tower.word_ids("a photo of a"))
        prompts.ctx_condition.copy_(context.repeat(5, 1, 1))
        prompts.ctx_class.copy_(context)
        expected = condition_text_features(backbone, CONDITIONS, CLASSNAMES)
        torch.testing.assert_close(prompts(), expected, atol=1e-5, rtol=0)


def test_prompt_as_long_as_the_context_fits_and_one_more_does_not(tiny_clip: ClipBackbone) -> None:
    """31 = SOS 1 + u 4 + "time of day" 3 + w 18 + "hot dog stand" 3 + "." 1 + EOS 1."""
    assert make(tiny_clip, class_length=18)().shape == (5, 7, 11)
    message = "'time of day' and class 'hot dog stand' has 32 tokens, the text tower takes 31"
    with pytest.raises(PromptError, match=message):
        make(tiny_clip, class_length=19)
    with pytest.raises(PromptError, match="has 55 tokens"):
        make(tiny_clip, classnames=(" ".join(["cat"] * 43),), class_length=4, conditions=("day",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conditions": ()}, "0 conditions, 7 classes"),
        ({"classnames": ()}, "5 conditions, 0 classes"),
        ({"condition_length": 0, "class_length": 0}, "lengths 0 and 0"),
        ({"classnames": ("cat", " ")}, "class ' ' has no tokens"),
        ({"path": "fast"}, "expected auto, shared, plain or full, got 'fast'"),
    ],
)
def test_nothing_to_prompt(tiny_clip: ClipBackbone, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        make(tiny_clip, **changes)


def test_zero_shot_features_are_the_mean_over_templates(tiny_clip: ClipBackbone) -> None:
    templates = ("a photo of a {}.", "a drawing of the {}.", "{}")
    features = zero_shot_text_features(tiny_clip, CLASSNAMES, templates)
    each = torch.stack([tiny_clip.encode_texts([t.format("sofa") for t in templates])])
    torch.testing.assert_close(features[4], F.normalize(each[0].mean(0), dim=-1))
    single = zero_shot_text_features(tiny_clip, CLASSNAMES)
    torch.testing.assert_close(single[0], tiny_clip.encode_texts(["a photo of a cat."])[0])


@pytest.mark.parametrize("templates", [(), ("a photo.",), ("{} and {}",)])
def test_templates_without_a_place(tiny_clip: ClipBackbone, templates: tuple[str, ...]) -> None:
    with pytest.raises(PromptError, match="template"):
        zero_shot_text_features(tiny_clip, CLASSNAMES, templates)
