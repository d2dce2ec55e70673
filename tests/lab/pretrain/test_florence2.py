import dataclasses
import hashlib
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, Florence2ForConditionalGeneration

from vltune.backbones.checkpoint import BackboneConfig
from vltune.backbones.florence2 import load_florence2
from vltune.config import ConfigError, from_mapping, to_mapping
from vltune_lab.pretrain.florence2 import (
    Florence2Run,
    _steps,
    batch_loss,
    build_backbone,
    normalise_pixels,
    pretrain,
    start,
)
from vltune_lab.pretrain.florence2_card import WEIGHTS, publish
from vltune_lab.pretrain.florence2_evaluation import (
    QUESTIONS,
    answer_all,
    measured_split,
    question_figures,
    question_set,
)
from vltune_lab.pretrain.florence2_recipe import Florence2Recipe, KindWeights
from vltune_lab.pretrain.grounding import GroundingHead, read_image
from vltune_lab.pretrain.question_stream import (
    CAPTION_PROMPT,
    Places,
    QuestionBatch,
    QuestionStream,
    locate,
)
from vltune_lab.pretrain.stream import make_loader
from vltune_lab.pretrain.tokenizer import SPECIAL, lexicon_text, load_lexicon, train_tokenizer
from vltune_lab.scenes.library import PACKAGED_ASSETS, PRETRAINING_STYLES, Library, load_library
from vltune_lab.scenes.questions import COLOURS, KINDS, Question
from vltune_lab.scenes.render import Scene, SceneObject
from vltune_lab.scenes.world import load_priors

torch.set_num_threads(1)

MODEL = PACKAGED_ASSETS / "florence2-compact"
SOURCES = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
TINY = Florence2Recipe(
    steps=4, grounding_steps=2, batch_size=4, questions=2, texts=1, warmup_steps=1,
    language_warmup_steps=1, checkpoint_every=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def library() -> Library:
    return load_library(styles=PRETRAINING_STYLES, verify=False)


def stream_of(library: Library, seed: int = 5, first_step: int = 0) -> QuestionStream:
    stream = QuestionStream(
        library, seed=seed, batch_size=4, image_size=64, questions=2, texts=2,
        kinds=to_mapping(KindWeights()),
    )  # fmt: skip
    stream.first_step = first_step
    return stream


def assert_same(first: QuestionBatch, second: QuestionBatch) -> None:
    assert torch.equal(first.images, second.images)
    assert (first.questions, first.texts) == (second.questions, second.texts)
    for name, value in vars(first.places).items():
        assert torch.equal(value, getattr(second.places, name)), name


# Batches.


def test_a_resumed_stream_goes_on_where_it_stopped(library: Library) -> None:
    whole = list(itertools.islice(stream_of(library), 4))
    resumed = itertools.islice(make_loader(stream_of(library, first_step=2), workers=0), 2)
    for ours, theirs in zip(resumed, whole[2:], strict=True):
        assert_same(ours, theirs)
    assert not torch.equal(stream_of(library, seed=6).batch(0).images, whole[0].images)


def test_a_batch_asks_captions_and_has_phrases_copied(library: Library) -> None:
    batch = stream_of(library).batch(1)
    assert batch.images.shape == (4, 3, 64, 64)
    assert batch.images.dtype == torch.uint8
    assert {row for row, _, _ in batch.questions} == {0, 1, 2, 3}
    assert len(batch.questions) == 8
    captions = [triple for triple in batch.texts if triple[1] == CAPTION_PROMPT]
    copies = [triple for triple in batch.texts if triple[1] != CAPTION_PROMPT]
    assert 1 <= len(captions) <= 2
    assert len(copies) == 2
    assert all(prompt == f"Write: {answer}" for _, prompt, answer in copies)


def test_no_colour_is_told_of_an_image_whose_colours_were_changed(library: Library) -> None:
    """Thirty per cent of the images are varied: they have no colour labels and no captions."""
    stream = QuestionStream(
        library, seed=5, batch_size=60, image_size=64, questions=3, texts=60,
        kinds={"colour": 1.0, "presence": 1.0},
    )  # fmt: skip
    batch = stream.batch(0)
    told = {row for row, question, answer in batch.questions if answer in COLOURS}
    labelled = {row for row in range(60) if (batch.places.colours[row] >= 0).any()}
    captioned = {row for row, prompt, _ in batch.texts if prompt == CAPTION_PROMPT}
    assert told <= captioned
    assert labelled <= captioned
    assert 30 <= len(captioned) <= 54
    other = {row for row, question, answer in batch.questions if answer not in COLOURS}
    assert other - captioned, "varied images are still asked for what is there"


def test_places_by_hand() -> None:
    """64 px: 4 x 4 cells of 16 px; an eighth of a cell is 32 pixels, a quarter of a patch 16.

    A dog fills the top left 16 x 16 (cell 0, patches 0, 1, 8, 9) and its box is that square: centre
    (8, 8). A red cat's box is (40, 40, 16, 16), centre (48, 48): on the border, so in cell 15; it
    shows 8 x 8 pixels at (40, 40), which lie in cell 10 (64 >= 32) and patch 45 = 5 * 8 + 5.
    """
    owner = np.full((64, 64), -1, dtype=np.int8)
    owner[:16, :16] = 0
    owner[40:48, 40:48] = 1
    things = (
        SceneObject("dog", (0, 0, 16, 16), "brown", "top left", 1.0, 256),
        SceneObject("cat", (40, 40, 16, 16), "red", "bottom right", 0.25, 64),
    )
    scene = Scene(np.zeros((64, 64, 3), dtype=np.uint8), "street", "noto", things, owner, "snow")
    places = locate(("bus", "cat", "dog"), [scene])
    assert places.covers[0].nonzero().tolist() == [[0, 2], [10, 1]]
    assert places.centres[0].nonzero().tolist() == [[0, 2], [15, 1]]
    colours = [-1] * 16
    colours[0], colours[15] = COLOURS.index("brown"), COLOURS.index("red")
    assert places.colours[0].tolist() == colours
    patches = [3] * 64
    for index in (0, 1, 8, 9):
        patches[index] = 2
    patches[45] = 1
    assert places.patches[0].tolist() == patches
    assert sorted(load_priors().scenes)[int(places.scenes[0])] == "snow"


def test_two_objects_centred_in_a_cell_tell_no_colour() -> None:
    owner = np.full((64, 64), -1, dtype=np.int8)
    things = tuple(SceneObject(n, (0, 0, 8, 8), "red", "top left", 1.0, 9) for n in ("dog", "cat"))
    scene = Scene(np.zeros((64, 64, 3), dtype=np.uint8), "sky", "noto", things, owner, "sky")
    places = locate(("cat", "dog"), [scene])
    assert (places.colours == -1).all()
    assert places.centres[0, 0].tolist() == [True, True]


# Grounding.


def test_grounding_losses_by_hand() -> None:
    """All weights zero: patches cost log 4, scenes log 5, sigmoids softplus(-4) a class.

    One class of the three is in one of the two cells: its sigmoid costs softplus(4) there, so the
    mean over cells is (6 softplus(-4) + 4) / 2, as softplus(4) = softplus(-4) + 4.
    """
    head = GroundingHead(patch_width=7, token_width=11, num_classes=3, num_scenes=5)
    with torch.no_grad():
        for name, value in head.named_parameters():
            if "weight" in name or name.startswith(("colours", "scenes", "patches")):
                value.zero_()
    covers = torch.zeros(1, 2, 3, dtype=torch.bool)
    covers[0, 1, 2] = True
    places = Places(
        torch.zeros(1, 4, dtype=torch.int64), covers, torch.zeros_like(covers),
        torch.tensor([[-1, 0]]), torch.tensor([4]),
    )  # fmt: skip
    terms = head(torch.rand(1, 7, 2, 2), torch.rand(1, 3, 11), places)
    low = np.log1p(np.exp(-4.0))
    assert terms["patches"].item() == pytest.approx(np.log(4), abs=1e-6)
    assert terms["scenes"].item() == pytest.approx(np.log(5), abs=1e-6)
    assert terms["colours"].item() == pytest.approx(np.log(len(COLOURS)), abs=1e-6)
    assert terms["centres"].item() == pytest.approx(3 * low, abs=1e-6)
    assert terms["covers"].item() == pytest.approx((6 * low + 4) / 2, abs=1e-6)
    blank = dataclasses.replace(places, colours=torch.tensor([[-1, -1]]))
    assert head(torch.rand(1, 7, 2, 2), torch.rand(1, 3, 11), blank)["colours"].item() == 0


def test_reading_an_image_with_gradients_is_the_backbones_reading() -> None:
    backbone = build_backbone(MODEL, seed=1)
    pixels = torch.rand(2, 3, 64, 64)
    patches, tokens = read_image(backbone.model.eval(), pixels)
    assert patches.shape == (2, 128, 8, 8)
    assert tokens.requires_grad
    torch.testing.assert_close(tokens, backbone.encode_images(pixels))


def test_pixels_are_normalised_as_the_folder_says() -> None:
    backbone = build_backbone(MODEL, seed=1)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    ours = normalise_pixels(torch.from_numpy(image).permute(2, 0, 1))
    theirs = backbone.preprocess(Image.fromarray(image))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


# Tokenizer and recipe.


def test_the_lexicon_knows_every_class(library: Library) -> None:
    assert set(load_lexicon().classes) == set(library.classnames)
    rng = np.random.default_rng(0)
    texts = [lexicon_text(rng) for _ in range(300)]
    assert not any("{" in text for text in texts)
    assert len(set(texts)) > 250
    again = np.random.default_rng(0)
    assert texts[:5] == [lexicon_text(again) for _ in range(5)]


def test_a_trained_tokenizer_writes_any_text(tmp_path: Path) -> None:
    texts = ["Is there a dog?", "a dog and a cat", "two dogs"] * 20
    trained = train_tokenizer(iter(texts), 280, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert [loaded.convert_tokens_to_ids(token) for token in SPECIAL] == [0, 1, 2, 3, 4]
    assert (loaded.bos_token_id, loaded.pad_token_id, loaded.eos_token_id) == (0, 1, 2)
    assert loaded.image_token == "<image>"
    for text in ("a dog", "Zebra: 3 €", "日本"):
        ids = loaded(text)["input_ids"]
        assert ids == trained(text)["input_ids"]
        assert (ids[0], ids[-1]) == (0, 2)
        assert loaded.decode(ids, skip_special_tokens=True).strip() == text
    assert loaded("dog")["input_ids"][1] == loaded("a dog")["input_ids"][-2]


def test_recipes_are_checked() -> None:
    assert from_mapping(Florence2Recipe, to_mapping(TINY), "x") == TINY
    for wrong in ({"steps": 0}, {"grounding_steps": 5}, {"questions": 0}, {"batch_size": 1}):
        with pytest.raises(ConfigError):
            dataclasses.replace(TINY, **wrong)
    assert set(to_mapping(KindWeights())) == set(KINDS)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    shutil.copy(MODEL / "config.json", tmp_path)
    with pytest.raises(ConfigError, match=r"tokenizer\.json: no such file"):
        build_backbone(tmp_path, seed=0)


# Training.


def run(steps: int, work: Path) -> Florence2Run:
    return pretrain(
        dataclasses.replace(TINY, steps=steps), model_folder=MODEL, work=work, workers=0
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Florence2Run:
    return run(4, tmp_path_factory.mktemp("trained"))


@pytest.mark.slow
def test_a_resumed_run_has_the_weights_of_an_undisturbed_one(
    trained: Florence2Run, tmp_path: Path
) -> None:
    """Broken off by hand after two steps, with the recipe of the whole run."""
    library = load_library(styles=PRETRAINING_STYLES, verify=False)
    first = start(TINY, MODEL, tmp_path / "checkpoint.pt", library, "cpu")
    first.model.train()
    stream = QuestionStream(
        library, seed=TINY.seed, batch_size=4, image_size=64, questions=2, texts=1,
        kinds=to_mapping(TINY.kinds),
    )  # fmt: skip
    for _ in itertools.islice(_steps(first, iter(stream), TINY, library.classnames), 2):
        pass
    first.save(tmp_path / "checkpoint.pt")
    resumed = run(4, tmp_path)
    assert (resumed.step, trained.step) == (4, 4)
    for name, module in resumed.modules.items():
        wanted = trained.modules[name].state_dict()
        for key, value in module.state_dict().items():
            assert torch.equal(value, wanted[key]), key
    assert resumed.schedule == [[0, 4]]


@pytest.mark.slow
def test_another_recipe_does_not_continue_a_checkpoint(
    trained: Florence2Run, library: Library, tmp_path: Path
) -> None:
    trained.save(tmp_path / "checkpoint.pt")
    other = dataclasses.replace(TINY, questions=3)
    with pytest.raises(ConfigError, match=r"questions was 2, is 3"):
        start(other, MODEL, tmp_path / "checkpoint.pt", library, "cpu")


@pytest.mark.slow
def test_the_language_model_waits_for_its_turn(tmp_path: Path) -> None:
    state = run(2, tmp_path)
    untrained = build_backbone(MODEL, TINY.seed).model.state_dict()
    for name, value in state.model.state_dict().items():
        is_language = name.startswith(("model.language_model.", "lm_head"))
        if is_language:
            assert torch.equal(value, untrained[name]), name
    moved = state.model.model.vision_tower.convs[0].conv.weight
    assert not torch.equal(moved, untrained["model.vision_tower.convs.0.conv.weight"])


@pytest.mark.slow
def test_every_part_learns_and_the_loss_falls(library: Library, tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY, grounding_steps=0, steps=30, warmup_steps=3)
    state = start(recipe, MODEL, tmp_path / "none.pt", library, "cpu")
    state.model.train()
    batch = stream_of(library).batch(0)
    losses = []
    for step in range(25):
        terms = batch_loss(state, batch, with_language=True)
        assert set(terms) == set(to_mapping(recipe.losses))
        loss = sum(terms.values())
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if step == 0:
            without = [
                name
                for name, value in state.model.named_parameters()
                if value.grad is None or not value.grad.any()
            ]
            # Keys need no bias: the softmax cancels it. Single-token cells leave nothing else out.
            assert all(re.search(r"k_proj\.bias$", name) for name in without), without
        state.optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


# Measuring and publishing.


@pytest.mark.slow
def test_a_measured_set_holds_unseen_scenes_only(library: Library) -> None:
    split = measured_split(("noto",), "all")
    assert split.is_held_out
    images, groups = question_set(library, split, 64, 6, seed=1)
    again, _ = question_set(library, split, 64, 6, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(images, again, strict=True))
    assert all(len(group) <= QUESTIONS for group in groups)


@pytest.mark.slow
def test_questions_are_asked_of_the_right_images(library: Library) -> None:
    """In batches of three, as all at once, as one by one."""
    backbone = build_backbone(MODEL, seed=2)
    with torch.no_grad():
        for value in backbone.model.parameters():
            value.add_(0.2 * torch.randn_like(value))
    backbone.model.eval()
    tokens = backbone.encode_images(torch.rand(3, 3, 64, 64))
    pairs = [Question("colour", f"What colour is the {name}?", "red") for name in ("dog", "cat")]
    pairs = [*pairs, *pairs]
    rows = torch.tensor([2, 0, 1, 1])
    together = answer_all(backbone, tokens, rows, pairs)
    assert together == answer_all(backbone, tokens, rows, pairs, batch_size=3)
    for row, pair, answer in zip(rows.tolist(), pairs, together, strict=True):
        assert backbone.answer(tokens[row : row + 1], [pair.question], max_tokens=8) == [answer]


@pytest.mark.slow
def test_published_weights_are_those_of_the_card_and_load_everywhere(
    trained: Florence2Run, library: Library, tmp_path: Path
) -> None:
    folder = tmp_path / "florence2-compact"
    folder.mkdir()
    for name in SOURCES:
        shutil.copy(MODEL / name, folder)
    card = publish(trained, folder, "cpu", num_images=4)
    assert json.loads((folder / "card.json").read_text()) == card
    content = (folder / WEIGHTS).read_bytes()
    assert card["weights"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert len(content) < 25e6
    assert set(card["questions"]) == {"pretraining", "federation", "shifted"}
    text = (folder / "README.md").read_text()
    assert card["weights"]["sha256"] in text
    assert "| federation | blind |" in text

    ordinary = Florence2ForConditionalGeneration.from_pretrained(folder, dtype="float32").eval()
    backbone = load_florence2(
        BackboneConfig("florence2-compact", str(folder), card["weights"]["sha256"])
    )
    state = trained.model.state_dict()
    for name, value in ordinary.state_dict().items():
        assert torch.equal(value, state[name].half().float()), name
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        tokens = ordinary.get_image_features(pixels).pooler_output
    torch.testing.assert_close(backbone.encode_images(pixels), tokens)
    figures = question_figures(backbone, library, ("noto",), num_images=3, seed=1, drawings="all")
    assert figures.num_questions <= 3 * QUESTIONS
    assert all(0 <= value <= 1 for value in figures.exact_match.values())


def test_the_folder_is_an_ordinary_one_of_transformers() -> None:
    """Its processor lays out what the backbone feeds the encoder."""
    processor = AutoProcessor.from_pretrained(MODEL)
    backbone = build_backbone(MODEL, seed=0)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    inputs = processor(text=["Is there a dog?"], images=[image], return_tensors="pt")
    words = backbone.tokenizer("Is there a dog?")["input_ids"]
    image_id = backbone.model.config.image_token_id
    assert inputs["input_ids"].tolist() == [[image_id] * backbone.num_image_tokens + words]
    torch.testing.assert_close(
        inputs["pixel_values"][0], backbone.preprocess(image), rtol=0, atol=1e-6
    )
