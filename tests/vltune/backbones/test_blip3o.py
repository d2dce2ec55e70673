import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1]))

from tiny_blip3o import COMPACT, TINY, make_tiny_blip3o, write_tiny_blip3o

from vltune.backbones.blip3o import Blip3oBackbone, backbone_of, load_blip3o
from vltune.backbones.blip3o_checkpoint import read_tokenizer
from vltune.backbones.blip3o_drawing import drop_prompts, sample_features
from vltune.backbones.blip3o_model import merge_tokens
from vltune.backbones.checkpoint import BackboneConfig
from vltune.backbones.flow_matching import draw_flow, euler_sample, guided
from vltune.backbones.unified import UnifiedBackbone
from vltune.backbones.vision_language import TextTooLongError
from vltune.lora import add_lora, read_factors, train_factors
from vltune.lora_factors import LoraSettings

PROMPTS = ["Is there a dog?", "What does the image describe?", "hm"]
ANSWERS = ["yes", "a dog and a cat on a street", "blau"]
SIZE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_blip3o(tmp_path_factory.mktemp("blip3o") / "model")


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Blip3oBackbone:
    return load_blip3o(BackboneConfig("blip3o-tiny", str(folder)))


@pytest.fixture(scope="module")
def pixels(backbone: Blip3oBackbone) -> Tensor:
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)) for _ in range(3)]
    return torch.stack([backbone.preprocess(picture) for picture in pictures])


@pytest.fixture(scope="module")
def tokens(backbone: Blip3oBackbone, pixels: Tensor) -> Tensor:
    return backbone.encode_images(pixels)


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def embeddings_of(backbone: Blip3oBackbone, tokens: Tensor, text_ids: list[int]) -> Tensor:
    """One unpadded row, by hand: (1, M / 4 + L, W)."""
    words = backbone.model.embedding(torch.tensor([text_ids]))
    image = backbone.model.projector(merge_tokens(tokens[None], 2))
    return torch.cat([image, words], dim=1)


def test_it_is_a_unified_backbone(backbone: Blip3oBackbone, tokens: Tensor) -> None:
    assert isinstance(backbone, UnifiedBackbone)
    assert tokens.shape == (3, 16, 8)
    assert (backbone.num_image_tokens, backbone.image_token_width) == (16, 8)
    assert (backbone.image_size, backbone.target_shape) == ((SIZE, SIZE), (16, 8))
    assert backbone.target_dtype is torch.float32
    assert not tokens.requires_grad
    assert not backbone.model.training
    assert not any(p.requires_grad for p in backbone.model.parameters())


def test_the_towers_class_token_is_no_patch(backbone: Blip3oBackbone, pixels: Tensor) -> None:
    tower: Any = backbone.model.vision_tower.tower
    whole = tower.forward_features(pixels)
    assert whole.shape[1] == 17
    torch.testing.assert_close(backbone.encode_images(pixels), whole[:, 1:])


def test_squares_of_patches_are_read_side_by_side() -> None:
    """A 4 x 4 grid 0..15: the square in the top left holds 0, 1, 4 and 5, the next 2, 3, 6, 7."""
    grid = torch.arange(16.0).reshape(1, 16, 1)
    merged = merge_tokens(grid, 2)
    assert merged[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    wide = merge_tokens(torch.cat([grid, -grid], dim=2), 2)
    assert wide[0, 1].tolist() == [2, -2, 3, -3, 6, -6, 7, -7]
    assert merge_tokens(grid, 1) is grid


def test_targets_are_the_kept_features_standardised(
    backbone: Blip3oBackbone, pixels: Tensor, tokens: Tensor
) -> None:
    targets = backbone.encode_targets(pixels)
    model = backbone.model
    torch.testing.assert_close(targets * model.feature_std + model.feature_mean, tokens)
    assert torch.equal(backbone.targets_of(tokens), targets)


def test_loss_equals_transformers_own_on_each_row(backbone: Blip3oBackbone, tokens: Tensor) -> None:
    """Layout: image tokens, `<s> prompt </s>`, then the answer and `</s>`, which alone count."""
    language: Any = backbone.model.language_model
    sums = backbone.loss(tokens, PROMPTS, ANSWERS, reduction="sum")
    means = backbone.loss(tokens, PROMPTS, ANSWERS)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        start = backbone.tokenizer(prompt)["input_ids"]
        end = backbone.tokenizer(answer)["input_ids"][1:]
        assert (start[0], start[-1], end[-1]) == (0, 2, 2)
        embeddings = embeddings_of(backbone, tokens[row], start + end)
        labels = torch.full(embeddings.shape[:2], -100)
        labels[0, -len(end) :] = torch.tensor(end)
        theirs = language(inputs_embeds=embeddings, labels=labels).loss
        torch.testing.assert_close(means[row], theirs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sums[row], theirs * len(end), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(-sums, backbone.log_likelihood(tokens, PROMPTS, ANSWERS))


def test_answers_equal_a_loop_without_cache_or_padding(
    backbone: Blip3oBackbone, tokens: Tensor
) -> None:
    language: Any = backbone.model.language_model
    expected = []
    for row, prompt in enumerate(PROMPTS):
        ids = list(backbone.tokenizer(prompt)["input_ids"])
        written: list[int] = []
        while len(written) < 9 and (not written or written[-1] != 2):
            embeddings = embeddings_of(backbone, tokens[row], ids + written)
            written.append(int(language(inputs_embeds=embeddings).logits[0, -1].argmax()))
        expected.append(backbone.tokenizer.decode(written, skip_special_tokens=True).strip())
    assert backbone.answer(tokens, PROMPTS, max_tokens=9) == expected
    assert len(set(expected)) > 1


def test_no_row_depends_on_its_neighbours(backbone: Blip3oBackbone, tokens: Tensor) -> None:
    together = backbone.loss(tokens, PROMPTS, ANSWERS)
    states = backbone._condition(PROMPTS)
    for row in range(3):
        one = slice(row, row + 1)
        alone = backbone.loss(tokens[one], PROMPTS[one], ANSWERS[one])
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)
        torch.testing.assert_close(
            backbone._condition(PROMPTS[one])[0], states[row], rtol=0, atol=1e-5
        )


def test_the_queries_stand_right_after_the_prompt(backbone: Blip3oBackbone) -> None:
    """By hand without padding: the last Q hidden states of prompt and queries."""
    model: Any = backbone.model
    states = backbone._condition(PROMPTS)
    assert states.shape == (3, 3, 20)
    for row, prompt in enumerate(PROMPTS):
        words = model.embedding(torch.tensor([backbone.tokenizer(prompt)["input_ids"]]))
        whole = torch.cat([words, model.image_queries[None]], dim=1)
        hidden = model.language_model.model(inputs_embeds=whole).last_hidden_state
        torch.testing.assert_close(states[row], hidden[0, -3:], rtol=0, atol=1e-5)


def test_generation_loss_by_its_parts(backbone: Blip3oBackbone, pixels: Tensor) -> None:
    """The same draws in the same order: prompts left out, times, noise."""
    targets = backbone.encode_targets(pixels)
    loss = backbone.generation_loss(targets, PROMPTS, generator=seeded())
    generator = seeded()
    shown = drop_prompts(PROMPTS, 0.1, generator)
    draw = draw_flow(targets, generator)
    predicted = backbone.model.flow_transformer(draw.states, draw.times, backbone._condition(shown))
    by_hand = ((predicted - draw.velocities) ** 2).mean(dim=(1, 2))
    torch.testing.assert_close(loss, by_hand)
    assert torch.equal(loss, backbone.generation_loss(targets, PROMPTS, generator=seeded()))
    assert not torch.equal(loss, backbone.generation_loss(targets, PROMPTS, generator=seeded(2)))


def test_prompts_are_left_out_at_the_given_rate() -> None:
    shown = drop_prompts(["x"] * 2000, 0.1, seeded())
    assert 140 < shown.count("") < 260
    assert set(shown) == {"", "x"}


def test_images_follow_generator_prompt_and_guidance(backbone: Blip3oBackbone) -> None:
    images = backbone.generate_images(PROMPTS, generator=seeded())
    assert images.shape == (3, 3, SIZE, SIZE)
    assert (images.dtype, images.requires_grad) == (torch.float32, False)
    assert 0 <= float(images.min()) < float(images.max()) <= 1
    torch.manual_seed(5)
    assert torch.equal(images, backbone.generate_images(PROMPTS, generator=seeded()))
    assert not torch.allclose(images, backbone.generate_images(PROMPTS, generator=seeded(2)))
    other = backbone.generate_images(["a bus", *PROMPTS[1:]], generator=seeded())
    assert not torch.allclose(images[0], other[0])
    torch.testing.assert_close(images[1:], other[1:], rtol=0, atol=1e-5)
    default = backbone.generate_images(PROMPTS, generator=seeded(), guidance=2.0)
    assert torch.equal(images, default)
    assert not torch.allclose(
        images, backbone.generate_images(PROMPTS, generator=seeded(), guidance=4.0)
    )


def test_images_are_decoded_guided_euler_steps(backbone: Blip3oBackbone) -> None:
    """Conditional and unconditional velocity in two passes equal the one pass of the sampler."""
    condition, empty = backbone._condition(PROMPTS[:1]), backbone._condition([""])
    flow = backbone.model.flow_transformer

    def velocity(states: Tensor, times: Tensor) -> Tensor:
        return guided(flow(states, times, condition), flow(states, times, empty), 3.0)

    noise = torch.randn(1, 16, 8, generator=seeded())
    with torch.no_grad():
        features = euler_sample(velocity, noise, 5)
        expected = backbone.model.feature_decoder(features)
    drawn = backbone.generate_images(PROMPTS[:1], generator=seeded(), guidance=3.0)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-5)


def test_what_does_not_fit_is_refused(backbone: Blip3oBackbone, tokens: Tensor) -> None:
    long = " ".join(["dog"] * 23)
    assert backbone.count_tokens([long, "dog"]) == [25, 3]
    with pytest.raises(TextTooLongError, match=r"prompt of 25 tokens, blip3o-tiny takes 24"):
        backbone.loss(tokens[:1], [long], ["yes"])
    with pytest.raises(TextTooLongError, match=r"answer of 25 tokens, blip3o-tiny takes 16"):
        backbone.loss(tokens[:1], ["a?"], [long])
    with pytest.raises(TextTooLongError, match="max_tokens"):
        backbone.answer(tokens[:1], ["a?"], max_tokens=17)
    with pytest.raises(TextTooLongError, match="prompt of 25"):
        backbone.generate_images([long], generator=seeded())
    longest = backbone.loss(tokens[:1], [long[4:]], [" ".join(["dog"] * 14)])
    assert longest.isfinite().all()


def test_shapes_that_disagree_are_refused(backbone: Blip3oBackbone, tokens: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, \*\(3, 16, 16\)\), got \(1, 3, 30, 16\)"):
        backbone.encode_images(torch.zeros(1, 3, 30, 16))
    with pytest.raises(ValueError, match="3 prompts but 2 answers"):
        backbone.loss(tokens, PROMPTS, ANSWERS[:2])
    with pytest.raises(ValueError, match=r"expected \(3, 16, 8\) for 3 prompts"):
        backbone.loss(tokens[:2], PROMPTS, ANSWERS)
    with pytest.raises(ValueError, match=r"targets: expected \(3, 16, 8\), got \(3, 16, 7\)"):
        backbone.generation_loss(tokens[:, :, :7], PROMPTS, generator=seeded())
    with pytest.raises(ValueError, match=r"guidance must be > 1, got 1\.0"):
        backbone.generate_images(PROMPTS, generator=seeded(), guidance=1.0)
    bare = backbone_of("bare", make_tiny_blip3o(settings=replace(TINY, decoder=None)), None)
    with pytest.raises(ValueError, match="bare has no decoder"):
        bare.decode_features(tokens)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_lora_hits_language_model_and_flow_and_changes_both_tasks(folder: Path) -> None:
    """Two layers x 4 projections, and two blocks x (3 + 3 + 1)."""
    backbone = load_blip3o(BackboneConfig("blip3o-tiny", str(folder)))
    names = [name for name, _ in backbone.model.named_modules()]
    hit = [name for name in names if re.fullmatch(backbone.lora_scope, name)]
    drawn = [name for name in hit if re.fullmatch(backbone.generation_scope, name)]
    assert (len(hit), len(drawn)) == (2 * 4 + 2 * 7, 2 * 7)
    assert all(name.startswith("flow_transformer.") for name in drawn)
    tokens = backbone.encode_images(torch.rand(2, 3, SIZE, SIZE))
    targets = backbone.targets_of(tokens)

    def read_and_draw() -> tuple[Tensor, Tensor]:
        return (
            backbone.loss(tokens, PROMPTS[:2], ANSWERS[:2]),
            backbone.generation_loss(targets, PROMPTS[:2], generator=seeded()),
        )

    plain = read_and_draw()
    settings = LoraSettings(2, 4.0, backbone.lora_scope)
    lora = add_lora(backbone.model, settings, 0, allowed=backbone.lora_scope)
    train_factors(lora, ("A", "B"))
    for before, after in zip(plain, read_and_draw(), strict=True):
        torch.testing.assert_close(after, before, msg="lora_B starts at zero")
    with torch.no_grad():
        for name, value in lora.named_parameters():
            if ".lora_B." in name:
                value.fill_(0.3)
    adapted = read_and_draw()
    assert not any(torch.allclose(a, b) for a, b in zip(plain, adapted, strict=True))
    adapted[0].sum().backward()
    read_only = {n for n, p in lora.named_parameters() if p.grad is not None and p.grad.any()}
    assert all("language_model" in name for name in read_only)
    adapted[1].sum().backward()
    trained = {n for n, p in lora.named_parameters() if p.grad is not None and p.grad.any()}
    assert len(trained) == 2 * len(hit) == len(read_factors(lora))


def test_a_folder_and_its_model_are_one(backbone: Blip3oBackbone, folder: Path) -> None:
    """fp32 weights survive the round trip exactly, and the same model has the same fingerprint."""
    model = make_tiny_blip3o()
    again = backbone_of("again", model, read_tokenizer(COMPACT / "tokenizer.json"))
    assert again.fingerprint == backbone.fingerprint
    assert again.tokenizer_fingerprint == backbone.tokenizer_fingerprint
    assert again.preprocess_fingerprint == backbone.preprocess_fingerprint
    other = load_blip3o(BackboneConfig("blip3o-tiny", str(write_other(folder))))
    assert other.fingerprint != backbone.fingerprint


def write_other(folder: Path) -> Path:
    return write_tiny_blip3o(folder.parent / "other", seed=1)


@pytest.mark.slow
def test_what_is_drawn_follows_the_prompt_after_training() -> None:
    """Two prompts, two targets: the flow's loss falls, and each prompt draws its own target."""
    model = make_tiny_blip3o()
    backbone = backbone_of("learner", model, read_tokenizer(COMPACT / "tokenizer.json"))
    prompts = ["a red dog", "two cats"]
    targets = torch.randn(2, 16, 8, generator=seeded(7))
    parts = [*model.flow_transformer.parameters(), model.image_queries]
    for value in parts:
        value.requires_grad_(True)
    optimizer = torch.optim.AdamW(parts, lr=5e-3, weight_decay=0.0)
    generator = seeded(3)
    losses = []
    for _ in range(400):
        loss = backbone.generation_loss(
            targets.repeat(8, 1, 1), prompts * 8, generator=generator
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    condition, empty = backbone._condition(prompts), backbone._condition([""])
    noise = torch.randn(2, 16, 8, generator=seeded(11))
    drawn = sample_features(model, condition, empty, noise, 2.0)
    apart = torch.cdist(drawn.flatten(1), targets.flatten(1))
    assert apart.argmin(dim=1).tolist() == [0, 1]
    assert float(apart.diagonal().max()) < 0.7 * float(apart.fliplr().diagonal().min())
