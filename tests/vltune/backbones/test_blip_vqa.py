import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BlipImageProcessor

sys.path.append(str(Path(__file__).parents[1]))

from tiny_blip_vqa import SIZE, write_tiny_blip_vqa

from vltune.backbones.blip_vqa import BlipVqaBackbone, load_blip_vqa
from vltune.backbones.checkpoint import BackboneConfig, BackboneError
from vltune.backbones.unified import UnifiedBackbone
from vltune.backbones.vision_language import TextTooLongError
from vltune.lora import add_lora
from vltune.lora_factors import LoraSettings

PROMPTS = ["is there a dog?", "what does the image show?", "hm"]
ANSWERS = ["yes", "a dog and a cat on the street", "blue"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_blip_vqa(tmp_path_factory.mktemp("blip") / "model")


@pytest.fixture(scope="module")
def backbone(folder: Path) -> BlipVqaBackbone:
    return load_blip_vqa(BackboneConfig("blip-vqa-tiny", str(folder)))


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)) for _ in range(3)]


@pytest.fixture(scope="module")
def pixels(folder: Path, pictures: list[Image.Image]) -> Tensor:
    """As transformers' own processor makes them."""
    processor = BlipImageProcessor.from_pretrained(folder)
    return processor(pictures, return_tensors="pt")["pixel_values"]


@pytest.fixture(scope="module")
def tokens(backbone: BlipVqaBackbone, pixels: Tensor) -> Tensor:
    return backbone.encode_images(pixels)


def test_shapes_and_freezing(backbone: BlipVqaBackbone, tokens: Tensor) -> None:
    assert tokens.shape == (3, 5, 20)
    assert (backbone.num_image_tokens, backbone.image_token_width) == (5, 20)
    assert (backbone.max_prompt_tokens, backbone.max_answer_tokens) == (12, 12)
    assert not tokens.requires_grad
    assert not backbone.model.training
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert not isinstance(backbone, UnifiedBackbone), "it does not draw"


def test_preprocessing_is_that_of_transformers(
    backbone: BlipVqaBackbone, pictures: list[Image.Image], pixels: Tensor
) -> None:
    ours = torch.stack([backbone.preprocess(picture) for picture in pictures])
    torch.testing.assert_close(ours, pixels, rtol=0, atol=1e-5)


def test_losses_equal_transformers_own_on_pixels(
    backbone: BlipVqaBackbone, pixels: Tensor, tokens: Tensor
) -> None:
    """Its labels are the answer with the decoder's start token in the first place."""
    sums = backbone.loss(tokens, PROMPTS, ANSWERS, reduction="sum")
    means = backbone.loss(tokens, PROMPTS, ANSWERS)
    model: Any = backbone.model
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        question = backbone.tokenizer(prompt, return_tensors="pt")
        labels = backbone.tokenizer(answer, return_tensors="pt")["input_ids"]
        labels[0, 0] = backbone.start_id
        theirs = model(
            input_ids=question["input_ids"],
            attention_mask=question["attention_mask"],
            pixel_values=pixels[row : row + 1],
            labels=labels,
        ).loss
        torch.testing.assert_close(means[row], theirs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sums[row], theirs * (labels.shape[1] - 1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(-sums, backbone.log_likelihood(tokens, PROMPTS, ANSWERS))


def test_answers_equal_transformers_own_on_pixels(
    backbone: BlipVqaBackbone, pixels: Tensor, tokens: Tensor
) -> None:
    model: Any = backbone.model
    theirs = []
    for row, prompt in enumerate(PROMPTS):
        ids = model.generate(
            **dict(backbone.tokenizer(prompt, return_tensors="pt")),
            pixel_values=pixels[row : row + 1],
            num_beams=1,
            do_sample=False,
            max_new_tokens=7,
        )
        theirs.append(backbone.tokenizer.decode(ids[0, 1:], skip_special_tokens=True).strip())
    assert backbone.answer(tokens, PROMPTS, max_tokens=7) == theirs
    assert len(set(theirs)) > 1


def test_no_answer_depends_on_its_neighbours(backbone: BlipVqaBackbone, tokens: Tensor) -> None:
    """Questions of 7, 8 and 3 tokens share a batch; padding is not read."""
    together = backbone.loss(tokens, PROMPTS, ANSWERS)
    for row in range(3):
        one = slice(row, row + 1)
        alone = backbone.loss(tokens[one], PROMPTS[one], ANSWERS[one])
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)
        assert (
            backbone.answer(tokens[one], PROMPTS[one], max_tokens=7)[0]
            == backbone.answer(tokens, PROMPTS, max_tokens=7)[row]
        )


def test_the_image_is_read(backbone: BlipVqaBackbone, tokens: Tensor) -> None:
    same = backbone.loss(tokens, PROMPTS[:1] * 3, ANSWERS[:1] * 3)
    assert len({round(float(value), 5) for value in same}) == 3


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_lora_hits_query_key_value_of_both_text_towers(folder: Path) -> None:
    """Two towers x two layers x self and cross attention x three projections."""
    backbone = load_blip_vqa(BackboneConfig("blip-vqa-tiny", str(folder)))
    names = [name for name, _ in backbone.model.named_modules()]
    hit = [name for name in names if re.fullmatch(backbone.lora_scope, name)]
    assert len(hit) == 2 * 2 * 2 * 3
    bare = [name for name in names if name.rpartition(".")[2] in ("query", "key", "value")]
    assert sorted(hit) == sorted(bare), "what bare names hit, as in NVIDIA FLARE's example"
    tokens = backbone.encode_images(torch.rand(2, 3, SIZE, SIZE))
    plain = backbone.loss(tokens, PROMPTS[:2], ANSWERS[:2])
    settings = LoraSettings(2, 4.0, backbone.lora_scope)
    lora = add_lora(backbone.model, settings, 0, allowed=backbone.lora_scope)
    torch.testing.assert_close(backbone.loss(tokens, PROMPTS[:2], ANSWERS[:2]), plain)
    with torch.no_grad():
        for name, value in lora.named_parameters():
            if ".lora_B." in name:
                value.fill_(0.5)
    adapted = backbone.loss(tokens, PROMPTS[:2], ANSWERS[:2])
    assert not torch.allclose(adapted, plain)
    adapted.sum().backward()
    silent = [n for n, p in lora.named_parameters() if p.requires_grad and not p.grad.any()]
    assert silent == []


def test_what_does_not_fit_is_refused(backbone: BlipVqaBackbone, tokens: Tensor) -> None:
    long = " ".join(["dog"] * 11)
    assert backbone.count_tokens([long, "dog"]) == [13, 3]
    with pytest.raises(TextTooLongError, match=r"prompt of 13 tokens, blip-vqa-tiny takes 12"):
        backbone.loss(tokens[:1], [long], ["yes"])
    with pytest.raises(TextTooLongError, match=r"answer of 13 tokens"):
        backbone.loss(tokens[:1], ["a"], [long])
    with pytest.raises(TextTooLongError, match=r"max_tokens must be in 1\.\.11, got 12"):
        backbone.answer(tokens[:1], ["a"], max_tokens=12)
    assert backbone.loss(tokens[:1], [long[4:]], [long[4:]]).isfinite().all()
    with pytest.raises(ValueError, match=r"expected \(3, 5, 20\) for 3 prompts"):
        backbone.loss(tokens[:2], PROMPTS, ANSWERS)
    with pytest.raises(ValueError, match="3 prompts but 2 answers"):
        backbone.loss(tokens, PROMPTS, ANSWERS[:2])
    with pytest.raises(ValueError, match=r"got \(1, 3, 8, 16\)"):
        backbone.encode_images(torch.zeros(1, 3, 8, 16))


def clone(source: Path, target: Path) -> Path:
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refusal(folder: Path, sha256: str = "") -> str:
    with pytest.raises(BackboneError) as caught:
        load_blip_vqa(BackboneConfig("blip-vqa-tiny", str(folder), sha256))
    return str(caught.value)


def test_wrong_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "nowhere")
    assert "SHA-256 is" in refusal(folder, "0" * 64)
    other = clone(folder, tmp_path / "other")
    edit(other / "config.json", architectures=["BlipForConditionalGeneration"])
    assert "expected 'blip' and BlipForQuestionAnswering" in refusal(other)
    crop = clone(folder, tmp_path / "crop")
    edit(crop / "preprocessor_config.json", do_center_crop=True, resample=1)
    assert "do_center_crop is on; resample 1 is not known" in refusal(crop)
    large = clone(folder, tmp_path / "large")
    edit(large / "preprocessor_config.json", size={"height": 24, "width": 24})
    assert "resized to 24 pixels, the vision tower takes 16" in refusal(large)


def test_tensors_are_strict_but_stored_positions_are_known(folder: Path, tmp_path: Path) -> None:
    """Checkpoints of older versions hold `position_ids`, 0, 1, 2, ...; all else is refused."""
    copy = clone(folder, tmp_path / "copy")
    weights = copy / "model.safetensors"
    state = load_file(weights)
    state["text_encoder.embeddings.position_ids"] = torch.arange(12)[None]
    save_file(state, weights, metadata={"format": "pt"})
    load_blip_vqa(BackboneConfig("old", str(copy)))
    save_file({**state, "left.over": torch.zeros(1)}, weights, metadata={"format": "pt"})
    assert "left.over: unknown to the model" in refusal(copy)
    key = next(k for k in state if k.endswith("crossattention.self.query.weight"))
    save_file({k: v for k, v in state.items() if k != key}, weights, metadata={"format": "pt"})
    assert f"{key}: missing" in refusal(copy)
