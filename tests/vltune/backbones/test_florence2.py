import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
)

from vltune.backbones.checkpoint import BackboneConfig, BackboneError
from vltune.backbones.florence2 import LORA_SCOPE, Florence2Backbone, load_florence2
from vltune.backbones.vision_language import TextTooLongError

COMPACT = Path(__file__).parents[3] / "assets" / "florence2-compact"
PROMPTS = ["Is there a dog?", "What does the image describe?", "hm"]
ANSWERS = ["yes", "a dog and a cat on a street", "blau"]
SIZE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint as transformers writes it; 32 px -> 2 x 2 + 1 image tokens."""
    folder = tmp_path_factory.mktemp("florence2-tiny")
    tokenizer = AutoTokenizer.from_pretrained(COMPACT)
    tokenizer.save_pretrained(folder)
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    config = Florence2Config(
        vision_config={
            "depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 4],
            "patch_padding": [3, 1], "patch_prenorm": [False, True], "embed_dim": [8, 12],
            "num_heads": [2, 3], "num_groups": [2, 3], "window_size": 2, "projection_dim": 20,
            "max_position_embeddings": 5, "drop_path_rate": 0.3,
        },
        text_config={
            "model_type": "bart", "vocab_size": len(tokenizer), "d_model": 20,
            "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
            "decoder_attention_heads": 2, "encoder_ffn_dim": 28, "decoder_ffn_dim": 28,
            "max_position_embeddings": 40, "dropout": 0.1, "init_std": 0.6, **ids,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), **ids,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Florence2ForConditionalGeneration(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "vision" in name and value.ndim > 1:
                value.mul_(8)
    model.save_pretrained(folder)
    preprocessor = json.loads((COMPACT / "preprocessor_config.json").read_text())
    preprocessor["size"] = {"height": SIZE, "width": SIZE}
    preprocessor["image_seq_length"] = 5
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Florence2Backbone:
    return load_florence2(BackboneConfig("tiny", str(folder)))


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    coarse = [Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)) for _ in range(3)]
    sizes = ((SIZE, SIZE), (45, 31), (64, 80))
    return [picture.resize(size) for picture, size in zip(coarse, sizes, strict=True)]


@pytest.fixture(scope="module")
def inputs(folder: Path, backbone: Florence2Backbone, pictures: list[Image.Image]):
    """What transformers' own processor makes of the same pictures and prompts."""
    processor = Florence2Processor(
        image_processor=CLIPImageProcessor.from_pretrained(folder),
        tokenizer=backbone.tokenizer,
        num_additional_image_tokens=0,
    )
    return processor(text=PROMPTS, images=pictures, return_tensors="pt", padding=True)


@pytest.fixture(scope="module")
def tokens(backbone: Florence2Backbone, pictures: list[Image.Image]) -> torch.Tensor:
    return backbone.encode_images(torch.stack([backbone.preprocess(p) for p in pictures]))


def test_shapes_and_freezing(backbone: Florence2Backbone, tokens: torch.Tensor) -> None:
    assert tokens.shape == (3, 5, 20)
    assert (backbone.num_image_tokens, backbone.image_token_width) == (5, 20)
    assert (backbone.max_prompt_tokens, backbone.max_answer_tokens) == (35, 40)
    assert not tokens.requires_grad
    assert not backbone.model.training
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert len({float(row.sum()) for row in tokens}) == 3, "one image's tokens are not another's"


def test_preprocessing_is_that_of_transformers(
    backbone: Florence2Backbone, pictures: list[Image.Image], inputs
) -> None:
    ours = torch.stack([backbone.preprocess(picture) for picture in pictures])
    # Pillow and torchvision may round to neighbouring grey levels; 2 / 255 is one.
    torch.testing.assert_close(ours, inputs["pixel_values"], rtol=0, atol=2.1 / 255)
    torch.testing.assert_close(ours[0], inputs["pixel_values"][0], rtol=0, atol=1e-6)


def test_the_encoder_reads_what_the_processor_lays_out(backbone: Florence2Backbone, inputs) -> None:
    ids, mask = backbone._ids(PROMPTS, 35, "prompt")
    assert torch.equal(inputs["input_ids"][:, 5:], ids)
    assert torch.equal(inputs["attention_mask"][:, 5:].bool(), mask)
    assert (inputs["input_ids"][:, :5] == backbone.model.config.image_token_id).all()


def test_loss_equals_transformers_own_forward(
    backbone: Florence2Backbone, inputs, tokens: torch.Tensor
) -> None:
    """Its loss is the mean over all tokens of the batch; ours is by answer."""
    labels = backbone.tokenizer(ANSWERS, padding=True, return_tensors="pt")["input_ids"]
    labels[labels == 1] = -100
    with torch.no_grad():
        theirs = backbone.model(**inputs, labels=labels)
        images = backbone.encode_images(inputs["pixel_values"])
        sums = backbone.loss(images, PROMPTS, ANSWERS, reduction="sum")
        means = backbone.loss(images, PROMPTS, ANSWERS)
    lengths = (labels != -100).sum(dim=1)
    assert (sums.sum() / lengths.sum()).item() == pytest.approx(theirs.loss.item(), abs=1e-5)
    torch.testing.assert_close(means, sums / lengths)
    by_hand = F.cross_entropy(theirs.logits.transpose(1, 2), labels, reduction="none").sum(dim=1)
    torch.testing.assert_close(sums, by_hand, rtol=0, atol=1e-4)
    torch.testing.assert_close(-sums, backbone.log_likelihood(images, PROMPTS, ANSWERS))


def test_answers_equal_transformers_own_generate(backbone: Florence2Backbone, inputs) -> None:
    with torch.no_grad():
        ids = backbone.model.generate(**inputs, num_beams=1, do_sample=False, max_new_tokens=9)
    theirs = backbone.tokenizer.batch_decode(ids, skip_special_tokens=True)
    images = backbone.encode_images(inputs["pixel_values"])
    ours = backbone.answer(images, PROMPTS, max_tokens=9)
    assert ours == [text.strip() for text in theirs]
    assert len(set(ours)) > 1
    assert any(ours)


def test_no_answer_depends_on_its_neighbours(
    backbone: Florence2Backbone, tokens: torch.Tensor
) -> None:
    together = backbone.loss(tokens, PROMPTS, ANSWERS)
    for row in range(3):
        alone = backbone.loss(tokens[row : row + 1], PROMPTS[row : row + 1], ANSWERS[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)
    several = tokens[:1].repeat_interleave(3, dim=0)
    assert backbone.answer(several, PROMPTS, max_tokens=7)[:1] == backbone.answer(
        tokens[:1], PROMPTS[:1], max_tokens=7
    )


def test_what_does_not_fit_is_refused_with_its_length(
    backbone: Florence2Backbone, tokens: torch.Tensor
) -> None:
    long = " ".join(["dog"] * 34)
    assert backbone.count_tokens([long, "dog"]) == [36, 3]
    with pytest.raises(TextTooLongError, match=r"prompt of 36 tokens, tiny takes 35"):
        backbone.loss(tokens[:1], [long], ["yes"])
    assert backbone.loss(tokens[:1], [long[4:]], ["yes"]).isfinite().all()
    with pytest.raises(TextTooLongError, match=r"answer of 41 tokens, tiny takes 40"):
        backbone.loss(tokens[:1], ["a?"], [long + long[:19]])
    assert backbone.loss(tokens[:1], ["a?"], [long + long[:15]]).isfinite().all()
    with pytest.raises(TextTooLongError, match="max_tokens"):
        backbone.answer(tokens[:1], ["a?"], max_tokens=41)


def test_shapes_that_disagree_are_refused(
    backbone: Florence2Backbone, tokens: torch.Tensor
) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, \*\(3, 32, 32\)\), got \(1, 3, 30, 32\)"):
        backbone.encode_images(torch.zeros(1, 3, 30, 32))
    with pytest.raises(ValueError, match="3 prompts but 2 answers"):
        backbone.loss(tokens, PROMPTS, ANSWERS[:2])
    with pytest.raises(ValueError, match="for 3 prompts"):
        backbone.loss(tokens[:2], PROMPTS, ANSWERS)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_lora_hits_the_language_model_only_and_changes_every_reading(folder: Path) -> None:
    """Two layers each: self attention 4 and fc 2, in the decoder cross attention 4 more."""
    backbone = load_florence2(BackboneConfig("tiny", str(folder)))
    names = [name for name, _ in backbone.model.named_modules()]
    hit = [name for name in names if re.fullmatch(backbone.lora_scope, name)]
    assert len(hit) == 2 * 6 + 2 * 10
    assert all(name.startswith("model.language_model.") for name in hit)
    assert any(re.search("(fc1|fc2)$", name) and "vision" in name for name in names)
    before = backbone.fingerprint
    images = backbone.encode_images(torch.rand(2, 3, SIZE, SIZE))
    plain = backbone.loss(images, PROMPTS[:2], ANSWERS[:2])
    wrapped = get_peft_model(backbone.model, LoraConfig(r=2, target_modules=LORA_SCOPE))
    adapted = backbone.loss(images, PROMPTS[:2], ANSWERS[:2])
    torch.testing.assert_close(adapted, plain, msg="lora_B starts at zero")
    adapted.sum().backward()
    trained = {n for n, p in wrapped.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained
    assert all(".lora_B." in name for name in trained), "A has no gradient while B is zero"
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if ".lora_B." in name:
                value.fill_(0.5)
    assert not torch.allclose(backbone.loss(images, PROMPTS[:2], ANSWERS[:2]), plain)
    assert backbone.fingerprint == before


def test_fingerprints_tell_weights_and_pixels_apart(folder: Path, tmp_path: Path) -> None:
    first = load_florence2(BackboneConfig("tiny", str(folder)))
    copy = clone(folder, tmp_path / "copy")
    again = load_florence2(BackboneConfig("another name", str(copy)))
    assert again.fingerprint == first.fingerprint
    assert again.tokenizer_fingerprint == first.tokenizer_fingerprint
    assert again.preprocess_fingerprint == first.preprocess_fingerprint
    model = Florence2ForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        model.model.vision_tower.convs[0].conv.bias[0] += 1e-3
    model.save_pretrained(copy)
    edit(copy / "preprocessor_config.json", image_mean=[0.4, 0.5, 0.5])
    other = load_florence2(BackboneConfig("tiny", str(copy)))
    assert other.fingerprint != first.fingerprint
    assert other.preprocess_fingerprint != first.preprocess_fingerprint


def clone(source: Path, target: Path) -> Path:
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    "values", [{"auto_map": {"AutoConfig": "x.Y"}}, {"vision_config": {"model_type": "davit"}}]
)
def test_original_checkpoints_are_refused_with_the_way_out(
    folder: Path, tmp_path: Path, values: dict[str, object]
) -> None:
    copy = clone(folder, tmp_path / "original")
    edit(copy / "config.json", **values)
    with pytest.raises(BackboneError) as caught:
        load_florence2(BackboneConfig("florence2", str(copy)))
    message = str(caught.value)
    assert "florence-community/Florence-2-base" in message
    assert "convert_florence2_original_pytorch_to_hf.py" in message
    assert "never run" in message


def test_wrong_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="no such folder"):
        load_florence2(BackboneConfig("florence2", "assets/florence2-nowhere"))
    with pytest.raises(BackboneError, match="no such folder"):
        load_florence2(BackboneConfig("florence2", str(tmp_path / "nowhere")))
    with pytest.raises(BackboneError, match=r"config\.json: cannot be read"):
        load_florence2(BackboneConfig("florence2", str(tmp_path)))
    other = clone(folder, tmp_path / "other")
    edit(other / "config.json", model_type="bart")
    with pytest.raises(BackboneError, match="model_type is 'bart', expected 'florence2'"):
        load_florence2(BackboneConfig("florence2", str(other)))
    with pytest.raises(BackboneError, match="SHA-256 is"):
        load_florence2(BackboneConfig("florence2", str(folder), "0" * 64))
    damaged = clone(folder, tmp_path / "damaged")
    content = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load_florence2(BackboneConfig("florence2", str(damaged)))


def test_missing_weights_are_an_error_not_a_warning(folder: Path, tmp_path: Path) -> None:
    copy = clone(folder, tmp_path / "deeper")
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["encoder_layers"] = 3
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(BackboneError, match=r"tensors do not fit the architecture.*missing"):
        load_florence2(BackboneConfig("florence2", str(copy)))


def test_a_folder_as_transformers_5_writes_its_processor(folder: Path, tmp_path: Path) -> None:
    copy = clone(folder, tmp_path / "nested")
    values = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(BackboneError, match=r"preprocessor_config\.json: cannot be read"):
        load_florence2(BackboneConfig("tiny", str(copy)))
    (copy / "processor_config.json").write_text(json.dumps({"image_processor": values}))
    nested = load_florence2(BackboneConfig("tiny", str(copy)))
    plain = load_florence2(BackboneConfig("tiny", str(folder)))
    assert nested.preprocess_fingerprint == plain.preprocess_fingerprint


def test_preprocessing_that_cannot_be_kept_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = clone(folder, tmp_path / "crop")
    edit(copy / "preprocessor_config.json", do_center_crop=True, resample=1)
    with pytest.raises(BackboneError, match="do_center_crop is on; resample 1 is not known"):
        load_florence2(BackboneConfig("florence2", str(copy)))


@pytest.mark.parametrize("text", ["37 Zahnbürsten, ça va: 5 cm", "日本語 ✓", "A/B #3"])
def test_any_text_can_be_written_and_read_back(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(COMPACT)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text
    assert tokenizer.unk_token_id not in ids


@pytest.mark.slow
def test_the_embedded_model_is_the_one_of_its_card() -> None:
    card = json.loads((COMPACT / "card.json").read_text())
    assert card["weights"]["bytes"] < 25e6
    compact = load_florence2(
        BackboneConfig("florence2-compact", str(COMPACT), card["weights"]["sha256"])
    )
    assert (compact.num_image_tokens, compact.image_token_width) == (17, 192)
    figures = card["questions"]
    assert figures["pretraining"]["exact_match"]["overall"] > 0.7
    assert (
        figures["federation"]["exact_match"]["overall"]
        < figures["pretraining"]["exact_match"]["overall"] - 0.1
    )
    for group in figures.values():
        assert group["exact_match"]["overall"] > group["blind"]["overall"] + 0.1
