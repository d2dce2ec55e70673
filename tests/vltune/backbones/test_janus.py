import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch.nn import functional as F
from transformers import JanusForConditionalGeneration, JanusImageProcessor, JanusProcessor

from vltune.backbones.checkpoint import BackboneConfig, BackboneError
from vltune.backbones.janus import ATTENTION_SCOPE, JanusBackbone, load_janus
from vltune.backbones.janus_drawing import code_losses, draw_codes
from vltune.backbones.unified import UnifiedBackbone
from vltune.backbones.vision_language import TextTooLongError

sys.path.append(str(Path(__file__).parents[1]))
from tiny_janus import SIDE, write_tiny_janus

PROMPTS = ["Is there a dog?", "What does the image describe?", "hm"]
ANSWERS = ["yes", "a dog and a cat on a street", "blau"]
DRAWN = ["a photo of a dog", "a photo of two red cats", "car"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 px -> 3 x 3 image tokens and 3 x 3 codes of 37."""
    return write_tiny_janus(tmp_path_factory.mktemp("janus-tiny"))


@pytest.fixture(scope="module")
def backbone(folder: Path) -> JanusBackbone:
    return load_janus(BackboneConfig("tiny", str(folder)))


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    coarse = [Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)) for _ in range(3)]
    sizes = ((SIDE, SIDE), (45, 31), (24, 60))
    return [picture.resize(size) for picture, size in zip(coarse, sizes, strict=True)]


@pytest.fixture(scope="module")
def processor(folder: Path, backbone: JanusBackbone) -> JanusProcessor:
    return JanusProcessor(
        image_processor=JanusImageProcessor.from_pretrained(folder),
        tokenizer=backbone.tokenizer,
        num_image_tokens=9,
    )


@pytest.fixture(scope="module")
def inputs(processor: JanusProcessor, pictures: list[Image.Image]) -> Any:
    """What transformers' own processor makes of the same pictures and prompts, left-padded."""
    texts = [f"<image>{prompt}" for prompt in PROMPTS]
    return processor(text=texts, images=pictures, return_tensors="pt", padding=True)


@pytest.fixture(scope="module")
def pixels(backbone: JanusBackbone, pictures: list[Image.Image]) -> torch.Tensor:
    return torch.stack([backbone.preprocess(picture) for picture in pictures])


@pytest.fixture(scope="module")
def tokens(backbone: JanusBackbone, pixels: torch.Tensor) -> torch.Tensor:
    return backbone.encode_images(pixels)


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def test_shapes_and_freezing(
    backbone: JanusBackbone, tokens: torch.Tensor, pixels: torch.Tensor
) -> None:
    assert isinstance(backbone, UnifiedBackbone)
    assert tokens.shape == (3, 9, 24)
    assert (backbone.num_image_tokens, backbone.image_token_width) == (9, 24)
    assert (backbone.max_prompt_tokens, backbone.max_answer_tokens) == (25, 26)
    assert not tokens.requires_grad
    assert not backbone.model.training
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert len({float(row.sum()) for row in tokens}) == 3, "one image's tokens are not another's"
    codes = backbone.encode_targets(pixels)
    assert codes.shape == (3, *backbone.target_shape) == (3, 9)
    assert codes.dtype == backbone.target_dtype
    assert (codes != codes[:1]).any()


def test_preprocessing_is_that_of_transformers(pixels: torch.Tensor, inputs: Any) -> None:
    # Pillow and torchvision may round to neighbouring grey levels; 2 / 255 is one.
    torch.testing.assert_close(pixels, inputs["pixel_values"], rtol=0, atol=2.1 / 255)
    torch.testing.assert_close(pixels[0], inputs["pixel_values"][0], rtol=0, atol=1e-6)


def test_prompts_are_laid_out_as_by_the_processor(backbone: JanusBackbone, inputs: Any) -> None:
    for row, mask, prompt in zip(
        inputs["input_ids"], inputs["attention_mask"], PROMPTS, strict=True
    ):
        before, after = backbone.texts.around_image(prompt)
        image = [backbone.tokenizer.image_token_id] * 9
        assert row[mask.bool()].tolist() == [*before, *image, *after]


def test_loss_equals_transformers_own_forward(
    backbone: JanusBackbone, pixels: torch.Tensor
) -> None:
    """On pixels, one row at a time, so that no padding takes part."""
    tokens = backbone.encode_images(pixels)
    ours = backbone.loss(tokens, PROMPTS, ANSWERS)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        before, after = backbone.texts.around_image(prompt)
        said = backbone.texts.answer(answer)
        asked = [*before, *[backbone.tokenizer.image_token_id] * 9, *after]
        labels = torch.tensor([[-100] * len(asked) + said])
        with torch.no_grad():
            theirs = backbone.model(
                input_ids=torch.tensor([asked + said]),
                pixel_values=pixels[row : row + 1],
                attention_mask=torch.ones(1, len(asked) + len(said), dtype=torch.long),
                labels=labels,
            )
        assert ours[row].item() == pytest.approx(theirs.loss.item(), abs=1e-4)
    sums = backbone.loss(tokens, PROMPTS, ANSWERS, reduction="sum")
    lengths = torch.tensor([len(backbone.texts.answer(answer)) for answer in ANSWERS])
    torch.testing.assert_close(ours, sums / lengths)
    torch.testing.assert_close(-sums, backbone.log_likelihood(tokens, PROMPTS, ANSWERS))


def test_answers_equal_transformers_own_generate(backbone: JanusBackbone, inputs: Any) -> None:
    with torch.no_grad():
        ids = backbone.model.generate(
            **inputs, generation_mode="text", do_sample=False, max_new_tokens=9
        )
    width = inputs["input_ids"].shape[1]
    theirs = backbone.tokenizer.batch_decode(ids[:, width:], skip_special_tokens=True)
    images = backbone.encode_images(inputs["pixel_values"])
    ours = backbone.answer(images, PROMPTS, max_tokens=9)
    assert ours == [text.strip() for text in theirs]
    assert len(set(ours)) > 1


def test_no_answer_depends_on_its_neighbours(backbone: JanusBackbone, tokens: torch.Tensor) -> None:
    together = backbone.loss(tokens, PROMPTS, ANSWERS)
    answers = backbone.answer(tokens, PROMPTS, max_tokens=7)
    for row in range(3):
        part = slice(row, row + 1)
        alone = backbone.loss(tokens[part], PROMPTS[part], ANSWERS[part])
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-4)
        assert backbone.answer(tokens[part], PROMPTS[part], max_tokens=7) == answers[part]


def test_generation_loss_by_transformers_parts(
    backbone: JanusBackbone, pixels: torch.Tensor
) -> None:
    """The stock parts put together by hand, one row without padding; codes of stock encode."""
    model: Any = backbone.model
    shuffled = F.pixel_unshuffle(pixels, backbone.settings.pixel_shuffle)
    with torch.no_grad():
        codes = model.model.vqmodel.encode(shuffled).image_tokens.view(3, -1)
    assert torch.equal(backbone.encode_targets(pixels), codes)
    rows = backbone.texts.drawing(DRAWN)
    losses = code_losses(model, codes, rows)
    for row, ids in enumerate(rows):
        with torch.no_grad():
            embeddings = torch.cat(
                [
                    model.get_input_embeddings()(ids)[None],
                    model.prepare_embeddings_for_image_generation(codes[row : row + 1, :-1]),
                ],
                dim=1,
            )
            states = model.model.language_model(inputs_embeds=embeddings).last_hidden_state
            logits = model.model.generation_head(states[:, -9:])
        by_hand = F.cross_entropy(logits[0], codes[row], reduction="none")
        torch.testing.assert_close(losses[row], by_hand, rtol=0, atol=1e-4)


def test_prompts_are_dropped_as_generate_leaves_them_out(
    backbone: JanusBackbone, pixels: torch.Tensor
) -> None:
    """With the same draws, a dropped row's loss is that of its blank and the others' their own."""
    codes = backbone.encode_targets(pixels[:1]).repeat(40, 1)
    prompts = DRAWN[:1] * 40
    losses = backbone.generation_loss(codes, prompts, generator=seeded(3))
    dropped = torch.rand(40, generator=seeded(3)) < backbone.prompt_drop
    assert 1 <= int(dropped.sum()) <= 12
    (ids,) = backbone.texts.drawing(DRAWN[:1])
    blank = backbone.texts.blank(ids)
    assert blank[0] == backbone.tokenizer.bos_token_id
    assert blank[-1] == backbone.tokenizer.boi_token_id
    assert (blank[1:-1] == backbone.tokenizer.pad_token_id).all()
    told, untold = (code_losses(backbone.model, codes[:1], [row]).mean() for row in (ids, blank))
    assert (told - untold).abs() > 1e-3
    torch.testing.assert_close(losses, torch.where(dropped, untold, told), rtol=0, atol=1e-4)


@pytest.mark.parametrize("guidance", [2.0, 5.0])
def test_drawing_equals_transformers_own_generate(
    backbone: JanusBackbone, processor: JanusProcessor, guidance: float
) -> None:
    """Greedy, prompts of three lengths; stock generate pads them at the left."""
    model: Any = backbone.model
    batch = processor(text=DRAWN, return_tensors="pt", padding=True, generation_mode="image")
    model.generation_config.generation_kwargs = {"boi_token_id": backbone.tokenizer.boi_token_id}
    with torch.no_grad():
        theirs = model.generate(
            **batch, generation_mode="image", do_sample=False, guidance_scale=guidance,
            max_new_tokens=9,
        )  # fmt: skip
    rows = backbone.texts.drawing(DRAWN)
    ours = draw_codes(
        model, rows, [backbone.texts.blank(ids) for ids in rows], num_codes=9, guidance=guidance
    )
    assert torch.equal(ours, theirs)
    assert len({tuple(row) for row in ours.tolist()}) > 1


def test_images_come_from_the_generator_alone(backbone: JanusBackbone) -> None:
    images = backbone.generate_images(DRAWN, generator=seeded(1))
    assert images.shape == (3, 3, SIDE, SIDE)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    torch.manual_seed(99)
    torch.testing.assert_close(backbone.generate_images(DRAWN, generator=seeded(1)), images)
    assert not torch.equal(backbone.generate_images(DRAWN, generator=seeded(2)), images)
    with pytest.raises(ValueError, match=r"guidance must be above 1, got 1\.0"):
        backbone.generate_images(DRAWN, generator=seeded(1), guidance=1.0)


def test_sampled_codes_have_the_guided_shares(backbone: JanusBackbone) -> None:
    """The first code of 600 rows of one prompt; total variation from the exact shares is small."""
    model: Any = backbone.model
    (ids,) = backbone.texts.drawing(DRAWN[:1])
    blank = backbone.texts.blank(ids)
    with torch.no_grad():
        logits = [
            model.model.generation_head(
                model.model.language_model(
                    inputs_embeds=model.get_input_embeddings()(row)[None]
                ).last_hidden_state[0, -1]
            )
            for row in (ids, blank)
        ]
    exact = ((logits[1] + 1.5 * (logits[0] - logits[1])) / 2.0).softmax(dim=0)
    drawn = draw_codes(
        model, [ids] * 600, [blank] * 600, num_codes=1, guidance=1.5, temperature=2.0,
        generator=seeded(0),
    )  # fmt: skip
    found = torch.bincount(drawn[:, 0], minlength=37) / 600
    assert float((found - exact).abs().sum() / 2) < 0.12


def test_what_does_not_fit_is_refused_with_its_length(
    backbone: JanusBackbone, tokens: torch.Tensor
) -> None:
    long = " ".join(["dog"] * 30)
    assert backbone.count_tokens([long, "dog"]) == [33, 4]
    with pytest.raises(TextTooLongError, match="prompt of 33 tokens, tiny takes 25"):
        backbone.loss(tokens[:1], [long], ["yes"])
    with pytest.raises(TextTooLongError, match="answer of 31 tokens, tiny takes 26"):
        backbone.loss(tokens[:1], ["a?"], [long])
    with pytest.raises(TextTooLongError, match="prompt of 32 tokens, tiny takes 25"):
        backbone.generate_images([long], generator=seeded(0))
    with pytest.raises(TextTooLongError, match="max_tokens"):
        backbone.answer(tokens[:1], ["a?"], max_tokens=27)


def test_shapes_that_disagree_are_refused(backbone: JanusBackbone, tokens: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, \*\(3, 24, 24\)\), got \(1, 3, 22, 24\)"):
        backbone.encode_images(torch.zeros(1, 3, 22, 24))
    with pytest.raises(ValueError, match="got"):
        backbone.encode_targets(torch.zeros(1, 3, 22, 24))
    with pytest.raises(ValueError, match="3 prompts but 2 answers"):
        backbone.loss(tokens, PROMPTS, ANSWERS[:2])
    with pytest.raises(ValueError, match="for 3 prompts"):
        backbone.loss(tokens[:2], PROMPTS, ANSWERS)
    codes = torch.zeros(3, 8, dtype=torch.long)
    with pytest.raises(ValueError, match=r"expected \(3, 9\) for 3 prompts, got \(3, 8\)"):
        backbone.generation_loss(codes, DRAWN, generator=seeded(0))


def test_lora_hits_exactly_what_may_be_trained(folder: Path) -> None:
    """Two layers of four projections and three of the MLP, and the head's two."""
    backbone = load_janus(BackboneConfig("tiny", str(folder)))
    names = [name for name, module in backbone.model.named_modules() if not list(module.children())]

    def hit(scope: str) -> list[str]:
        return [name for name in names if re.fullmatch(scope, name)]

    assert len(hit(backbone.lora_scope)) == 2 * 7 + 2
    assert len(hit(ATTENTION_SCOPE)) == 2 * 4 + 2
    assert hit(backbone.generation_scope) == [
        "model.generation_head.proj_out",
        "model.generation_head.vision_head",
    ]
    assert set(hit(backbone.generation_scope)) < set(hit(backbone.lora_scope))
    assert any("vision_model" in name and name.endswith("q_proj") for name in names)
    frozen = ("model.vision_model.", "model.aligner.", "model.vqmodel.")
    assert not any(name.startswith(frozen) for name in hit(backbone.lora_scope))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_lora_changes_every_reading_but_what_is_kept(folder: Path, pixels: torch.Tensor) -> None:
    backbone = load_janus(BackboneConfig("tiny", str(folder)))
    tokens, codes = backbone.encode_images(pixels), backbone.encode_targets(pixels)
    plain = backbone.loss(tokens, PROMPTS, ANSWERS)
    drawn = backbone.generation_loss(codes, DRAWN, generator=seeded(0))
    wrapped = get_peft_model(backbone.model, LoraConfig(r=2, target_modules=backbone.lora_scope))
    torch.testing.assert_close(backbone.loss(tokens, PROMPTS, ANSWERS), plain)
    both = backbone.loss(tokens, PROMPTS, ANSWERS).sum()
    both = both + backbone.generation_loss(codes, DRAWN, generator=seeded(0)).sum()
    both.backward()
    trained = {n for n, p in wrapped.named_parameters() if p.grad is not None and p.grad.any()}
    assert len(trained) == 2 * 7 + 2
    assert all(".lora_B." in name for name in trained), "A has no gradient while B is zero"
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if ".lora_B." in name:
                value.fill_(0.5)
    assert not torch.allclose(backbone.loss(tokens, PROMPTS, ANSWERS), plain)
    again = backbone.generation_loss(codes, DRAWN, generator=seeded(0))
    assert not torch.allclose(again, drawn)
    torch.testing.assert_close(backbone.encode_images(pixels), tokens)
    assert torch.equal(backbone.encode_targets(pixels), codes)


def clone(source: Path, target: Path) -> Path:
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_fingerprints_tell_weights_settings_and_pixels_apart(folder: Path, tmp_path: Path) -> None:
    first = load_janus(BackboneConfig("tiny", str(folder)))
    copy = clone(folder, tmp_path / "copy")
    again = load_janus(BackboneConfig("another name", str(copy)))
    assert again.fingerprint == first.fingerprint
    assert again.tokenizer_fingerprint == first.tokenizer_fingerprint
    assert again.preprocess_fingerprint == first.preprocess_fingerprint
    edit(copy / "vltune_janus.json", norm_groups=4)
    edit(copy / "preprocessor_config.json", image_mean=[0.4, 0.5, 0.5])
    other = load_janus(BackboneConfig("tiny", str(copy)))
    assert other.fingerprint != first.fingerprint
    assert other.preprocess_fingerprint != first.preprocess_fingerprint
    model = JanusForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        model.model.vqmodel.quant_conv.bias[0] += 1e-3
    changed = clone(folder, tmp_path / "changed")
    model.save_pretrained(changed)
    assert load_janus(BackboneConfig("tiny", str(changed))).fingerprint != first.fingerprint


def test_groups_are_set_again_after_a_load(
    folder: Path, tmp_path: Path, pixels: torch.Tensor
) -> None:
    """Transformers itself builds 32, which at 32 channels is another function."""
    ours = load_janus(BackboneConfig("tiny", str(folder)))
    groups = {m.num_groups for m in ours.model.modules() if isinstance(m, torch.nn.GroupNorm)}
    assert groups == {8}
    ours.model.save_pretrained(tmp_path / "saved")
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (tmp_path / "saved" / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "saved" / "vltune_janus.json").write_bytes(
        (folder / "vltune_janus.json").read_bytes()
    )
    again = load_janus(BackboneConfig("tiny", str(tmp_path / "saved")))
    assert again.fingerprint == ours.fingerprint
    for method in ("encode_images", "encode_targets"):
        assert torch.equal(getattr(again, method)(pixels), getattr(ours, method)(pixels))
    stock = JanusForConditionalGeneration.from_pretrained(folder)
    codes = ours.encode_targets(pixels)
    with torch.no_grad():
        theirs = stock.model.vqmodel.decode(codes)
        assert not torch.allclose(theirs, ours.model.model.vqmodel.decode(codes), atol=1e-3)
    edit(tmp_path / "saved" / "vltune_janus.json", norm_groups=5)
    with pytest.raises(BackboneError, match="norm_groups 5 does not divide the 32 channels"):
        load_janus(BackboneConfig("tiny", str(tmp_path / "saved")))
    edit(tmp_path / "saved" / "vltune_janus.json", norm_groups=8, colour=1)
    with pytest.raises(BackboneError, match="colour"):
        load_janus(BackboneConfig("tiny", str(tmp_path / "saved")))


@pytest.mark.parametrize("values", [{"model_type": "multi_modality"}, {"auto_map": {"A": "x.Y"}}])
def test_original_checkpoints_are_refused_with_the_way_out(
    folder: Path, tmp_path: Path, values: dict[str, object]
) -> None:
    copy = clone(folder, tmp_path / "original")
    edit(copy / "config.json", **values)
    with pytest.raises(BackboneError) as caught:
        load_janus(BackboneConfig("janus", str(copy)))
    message = str(caught.value)
    assert "deepseek-community/Janus-Pro-1B" in message
    assert "convert_janus_weights_to_hf.py" in message
    assert "never run" in message


def test_wrong_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="no such folder"):
        load_janus(BackboneConfig("janus", "assets/janus-nowhere"))
    with pytest.raises(BackboneError, match=r"config\.json: cannot be read"):
        load_janus(BackboneConfig("janus", str(tmp_path)))
    with pytest.raises(BackboneError, match="SHA-256 is"):
        load_janus(BackboneConfig("janus", str(folder), "0" * 64))
    other = clone(folder, tmp_path / "other")
    edit(other / "config.json", model_type="bart")
    with pytest.raises(BackboneError, match="model_type is 'bart', expected 'janus'"):
        load_janus(BackboneConfig("janus", str(other)))
    deeper = clone(folder, tmp_path / "deeper")
    config = json.loads((deeper / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 3
    (deeper / "config.json").write_text(json.dumps(config))
    with pytest.raises(BackboneError, match=r"tensors do not fit the architecture.*missing"):
        load_janus(BackboneConfig("janus", str(deeper)))


def test_files_that_disagree_are_refused(folder: Path, tmp_path: Path) -> None:
    small = clone(folder, tmp_path / "small")
    edit(small / "preprocessor_config.json", size={"height": 16, "width": 16})
    with pytest.raises(BackboneError, match="size must be 24 x 24"):
        load_janus(BackboneConfig("janus", str(small)))
    shuffled = clone(folder, tmp_path / "shuffled")
    edit(shuffled / "vltune_janus.json", pixel_shuffle=4)
    with pytest.raises(BackboneError, match="other channels than the 48 of pixel_shuffle"):
        load_janus(BackboneConfig("janus", str(shuffled)))
    other = clone(folder, tmp_path / "tokens")
    edit(other / "config.json", image_token_id=5)
    with pytest.raises(BackboneError, match="image_token_id is 5, expected 4"):
        load_janus(BackboneConfig("janus", str(other)))
