import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vltune.backbones.checkpoint import BackboneConfig
from vltune.backbones.janus import JanusBackbone, load_janus
from vltune.config import ConfigError
from vltune_lab.pretrain.janus import (
    begin_reading,
    build_backbone,
    drawing_loss,
    reading_loss,
    start,
    take_stage,
    take_words,
)
from vltune_lab.pretrain.janus_card import publish
from vltune_lab.pretrain.janus_folder import write_folder
from vltune_lab.pretrain.janus_packing import packed_losses
from vltune_lab.pretrain.janus_recipe import (
    DecoderRecipe,
    JanusRecipe,
    TokenizerRecipe,
    VisionRecipe,
)
from vltune_lab.pretrain.janus_vision import (
    copy_blocks,
    ground,
    load_teacher,
    read_teacher,
    read_tower,
    vision_modules,
)
from vltune_lab.pretrain.pixel_decoder import decode_latents, start_decoder, train_decoder
from vltune_lab.pretrain.pixel_tokenizer import (
    DEAD,
    Codebook,
    PixelStream,
    latents_of,
    psnr,
    reconstruct,
    start_tokenizer,
)
from vltune_lab.pretrain.prompt_stream import PromptMix, PromptStream
from vltune_lab.pretrain.question_stream import QuestionStream
from vltune_lab.pretrain.run_state import RunState
from vltune_lab.scenes.geneval_prompts import FIRST_CLASSES
from vltune_lab.scenes.library import PRETRAINING_STYLES, Library, load_library

ASSETS = Path(__file__).parents[3] / "assets"
COMPACT = ASSETS / "janus-compact"


@pytest.fixture(scope="module")
def library() -> Library:
    return load_library(styles=PRETRAINING_STYLES, verify=False)


@pytest.fixture(scope="module")
def backbone() -> JanusBackbone:
    return build_backbone(COMPACT, seed=1)


def test_the_folder_is_what_its_writer_writes(tmp_path: Path) -> None:
    write_folder(tmp_path, ASSETS / "florence2-compact")
    for name in ("config.json", "vltune_janus.json", "preprocessor_config.json", "tokenizer.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads((COMPACT / name).read_text())


def test_a_dead_code_starts_anew_at_a_latent() -> None:
    """Three codes; the third is never chosen. 0.5^4 = 0.0625 is below DEAD = 0.1."""
    codebook = Codebook(3, 2, decay=0.5)
    codebook.counts.fill_(1.0)
    codebook.sums.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    latents = F.normalize(torch.tensor([[3.0, 1.0], [1.0, 4.0]]), dim=1)
    for _ in range(4):
        codebook.update(latents, torch.tensor([0, 1]))
    assert codebook.counts[2] == 0.0625 < DEAD
    torch.testing.assert_close(codebook.entries.norm(dim=1), torch.ones(3))
    expected = F.normalize(0.0625 * torch.tensor([1.0, 0.0]) + 0.9375 * latents[0], dim=0)
    torch.testing.assert_close(codebook.entries[0], expected)
    assert codebook.restart(latents) == 1
    assert any(torch.allclose(codebook.entries[2], row) for row in latents)
    assert codebook.restart(latents) == 0


def test_stock_encode_finds_the_trained_codes(backbone: JanusBackbone, tmp_path: Path) -> None:
    """The gradient reaches the encoder, and the class's own methods mean the same codes."""
    config = backbone._janus.config.vq_config
    state = start_tokenizer(TokenizerRecipe(), config, tmp_path / "absent.pt")
    vq: Any = state.modules["vq"]
    pixels = F.pixel_unshuffle(torch.rand(2, 3, 64, 64, generator=seeded(0)) * 2 - 1, 8)
    images, codes, chosen = reconstruct(vq, latents_of(vq, pixels))
    images.square().mean().backward()
    assert vq.encoder.conv_in.weight.grad.any()
    assert (codes.flatten() == vq.encode(pixels).image_tokens).float().mean() > 0.99
    torch.testing.assert_close(vq.decode(codes.flatten(1)), images, rtol=0, atol=1e-4)
    torch.testing.assert_close(chosen.norm(dim=-1), torch.ones(2, 8, 8))
    plain, _, same = reconstruct(vq, latents_of(vq, pixels), is_plain=True)
    torch.testing.assert_close(same, latents_of(vq, pixels))
    assert not torch.allclose(plain, images, atol=1e-3)


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def test_psnr() -> None:
    """An error of 0.2 in a range of 2 is 0.1 of it: 20 dB."""
    assert psnr(torch.full((2, 3), 0.2), torch.zeros(2, 3)) == pytest.approx(20.0)


def test_batches_depend_on_seed_and_number_alone(library: Library) -> None:
    pixels = PixelStream(library, seed=3, batch_size=2, image_size=64)
    assert torch.equal(pixels.batch(4), pixels.batch(4))
    assert not torch.equal(pixels.batch(4), pixels.batch(5))
    tags = {"single_object": 1.0, "colors": 1.0, "position": 1.0}
    mix = PromptMix(tags, first_steps=1, variety=0.0, plain=1.0)
    prompts = PromptStream(library, seed=3, batch_size=8, image_size=64, mix=mix)
    first = prompts.batch(0)
    assert first.images.shape == (8, 3, 64, 64)
    assert torch.equal(first.images, prompts.batch(0).images)
    assert all(any(name in prompt for name in FIRST_CLASSES) for prompt in first.prompts)
    later = [prompt for step in range(1, 4) for prompt in prompts.batch(step).prompts]
    assert any(all(name not in prompt for name in FIRST_CLASSES) for prompt in later)


def test_packed_questions_cost_what_they_cost_alone(backbone: JanusBackbone) -> None:
    generator = seeded(5)
    with torch.no_grad():
        for value in backbone.model.model.language_model.parameters():
            if value.ndim > 1:
                value.mul_(3)
    tokens = torch.randn(3, 64, 192, generator=generator)
    triples = [
        (0, "Is there a dog?", "yes"),
        (0, "How many cats are there?", "3"),
        (0, "Where is the car?", "top left"),
        (2, "What colour is the bus?", "red"),
        (2, "What is left of the dog?", "computer mouse"),
    ]
    packed = packed_losses(backbone, tokens, triples)
    rows, prompts, answers = zip(*triples, strict=True)
    alone = backbone.loss(tokens[list(rows)], prompts, answers)
    assert alone.std() > 0.1
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)


def test_the_tower_takes_over_the_trunks_blocks() -> None:
    """From the same first tokens both towers give the same."""
    backbone = build_backbone(COMPACT, seed=2)
    trunk = load_teacher(ASSETS / "clip-compact")
    tower = backbone._janus.model.vision_model
    copy_blocks(trunk, tower)
    pixels = torch.rand(2, 3, 64, 64, generator=seeded(1)) * 2 - 1
    first, wanted = read_teacher(trunk, pixels)
    hidden = first
    for layer in tower.encoder.layers[2:]:
        hidden = layer(hidden, None)
    torch.testing.assert_close(tower.post_layernorm(hidden), wanted, rtol=0, atol=1e-4)
    ours, last = read_tower(tower, pixels, 2)
    assert ours.shape == first.shape == last.shape == (2, 64, 128)
    torch.testing.assert_close(last, tower(pixels).last_hidden_state)


def test_words_begin_as_florence2_compacts(backbone: JanusBackbone) -> None:
    take_words(backbone, ASSETS / "florence2-compact")
    table = backbone._janus.get_input_embeddings().weight
    assert not table[backbone.tokenizer.pad_token_id].any()
    dog, cat, seven = (
        table[backbone.tokenizer(word, add_special_tokens=False)["input_ids"][0]]
        for word in ("dog", "cat", "seven")
    )
    assert dog.norm() > 0.1
    assert not torch.equal(dog, cat)
    assert seven.isfinite().all()


def test_a_stage_needs_the_one_before(backbone: JanusBackbone, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Run the stage 'tokenizer' first"):
        start(JanusRecipe(), backbone, tmp_path, "cpu")


def test_the_decoder_learns_and_the_codes_stay(backbone: JanusBackbone, tmp_path: Path) -> None:
    config = backbone._janus.config.vq_config
    save(start_tokenizer(TokenizerRecipe(), config, tmp_path / "absent"), tmp_path / "tokenizer")
    begun = take_vq(config, tmp_path / "tokenizer")
    recipe = DecoderRecipe(steps=12, batch_size=2, warmup_steps=1, checkpoint_every=5)
    state = train_decoder(recipe, begun, tmp_path / "decoder", workers=0)
    before = take_vq(config, tmp_path / "tokenizer").state_dict()
    after = state.modules["vq"].state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)
    pixels = PixelStream(
        load_library(styles=PRETRAINING_STYLES, verify=False), seed=9, batch_size=4, image_size=64
    ).batch(0)
    seen = F.pixel_unshuffle(pixels.float().div(127.5).sub(1.0), recipe.pixel_shuffle)
    old, new = (
        psnr(decode_latents(vq, seen).detach(), seen)
        for vq in (take_vq(config, tmp_path / "tokenizer"), state.modules["vq"])
    )
    assert new > old + 0.5


def test_a_decoder_of_other_codes_is_refused(backbone: JanusBackbone, tmp_path: Path) -> None:
    config = backbone._janus.config.vq_config
    recipe = DecoderRecipe(steps=1)
    first = start_tokenizer(TokenizerRecipe(), config, tmp_path / "absent").modules["vq"]
    save(start_decoder(recipe, first, tmp_path / "absent"), tmp_path / "decoder")
    other = start_tokenizer(TokenizerRecipe(seed=1), config, tmp_path / "absent").modules["vq"]
    with pytest.raises(ConfigError, match="codes of another tokenizer"):
        start_decoder(recipe, other, tmp_path / "decoder" / "checkpoint.pt")


def take_vq(config: Any, folder: Path) -> Any:
    vq = start_tokenizer(TokenizerRecipe(seed=3), config, folder / "absent").modules["vq"]
    take_stage(folder, {"vq": vq})
    return vq


def test_both_losses_train_the_language_model_alone(library: Library, tmp_path: Path) -> None:
    """With checkpoints of the other stages: what is frozen gets no gradient, the rest does."""
    backbone = build_backbone(COMPACT, seed=4)
    model: Any = backbone.model
    vq = start_tokenizer(TokenizerRecipe(), model.config.vq_config, tmp_path / "absent.pt")
    save(vq, tmp_path / "tokenizer")
    modules = vision_modules(backbone, len(library.classnames))
    optimizer = torch.optim.AdamW(nn.ModuleList(modules.values()).parameters(), lr=1e-3)
    save(RunState(modules, optimizer, {"steps": VisionRecipe().steps}), tmp_path / "vision")
    state = start(JanusRecipe(), backbone, tmp_path, "cpu")
    codebook = model.model.vqmodel.quantize.embedding.weight
    torch.testing.assert_close(codebook, vq.modules["vq"].quantize.embedding.weight)
    torch.testing.assert_close(model.model.generation_embeddings.weight, codebook)
    begin_reading(state, tmp_path, len(library.classnames), library.classnames)
    mix = PromptMix({"counting": 1.0}, first_steps=9, variety=0.0, plain=1.0)
    pictures = PromptStream(library, seed=3, batch_size=2, image_size=64, mix=mix).batch(0)
    questions = QuestionStream(
        library, seed=3, batch_size=2, image_size=64, questions=3, texts=1,
        kinds={"presence": 1.0, "place": 1.0},
    ).batch(0)  # fmt: skip
    loss = drawing_loss(state, pictures, 0) + reading_loss(state, questions)
    loss.backward()
    given = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert not any(".vision_model." in name or ".vqmodel." in name for name in given)
    parts = ("aligner", "generation_aligner", "generation_head", "generation_embeddings")
    for part in (*parts, "language_model"):
        assert any(name.startswith(f"model.{part}.") for name in given), part
    places = questions.places
    terms = ground(modules["head"], torch.randn(2, 64, 192, generator=seeded(0)), places)
    assert set(terms) == {"patches", "covers", "centres", "colours", "scenes"}


@pytest.mark.slow
def test_what_is_published_is_what_is_loaded(library: Library, tmp_path: Path) -> None:
    """Untrained: the card is written, says so in figures, and the weights are those of its hash."""
    folder = tmp_path / "janus-compact"
    write_folder(folder, ASSETS / "florence2-compact")
    work = tmp_path / "work"
    backbone = build_backbone(folder, seed=6)
    model: Any = backbone.model
    vq = start_tokenizer(TokenizerRecipe(), model.config.vq_config, work / "absent.pt")
    work.mkdir()
    save(vq, work / "tokenizer")
    state = start(JanusRecipe(), backbone, work, "cpu")
    card = publish(state, folder, work, "cpu", num_images=4, per_tag=1)
    assert card == json.loads((folder / "card.json").read_text())
    assert card["stages"]["tokenizer"]["steps"] == 0
    assert card["stages"]["vision"] == {}
    assert card["pixels"]["scenes"]["psnr_db"] < 15
    assert card["questions"]["pretraining"]["exact_match"]["overall"] < 0.6
    loaded = load_janus(
        BackboneConfig("janus-compact", str(folder), sha256=card["weights"]["sha256"])
    )
    torch.testing.assert_close(
        loaded._janus.model.generation_head.proj_out.weight,
        model.model.generation_head.proj_out.weight.half().float(),
    )
    assert (folder / "drawn.png").stat().st_size > 1000
    assert "janus-compact" in (folder / "README.md").read_text()


def save(state: RunState, folder: Path) -> None:
    folder.mkdir()
    state.save(folder / "checkpoint.pt")
