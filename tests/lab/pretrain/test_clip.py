import dataclasses
import hashlib
import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from vltune.backbones.clip import BackboneConfig, load_clip
from vltune.config import ConfigError, from_mapping
from vltune_lab.pretrain.card import WEIGHTS, publish
from vltune_lab.pretrain.clip import batch_loss, normalise_pixels, pretrain
from vltune_lab.pretrain.objectives import (
    TEMPLATES,
    Head,
    class_phrases,
    colour_loss,
    contrastive_loss,
    grounded_loss,
    presence_loss,
    spread_loss,
)
from vltune_lab.pretrain.phrases import encode_phrases
from vltune_lab.pretrain.recipe import PretrainConfig, learning_rate_at
from vltune_lab.pretrain.state import PretrainState, build_model, start
from vltune_lab.pretrain.stream import SceneBatch, SceneStream, describe_batch, make_loader
from vltune_lab.scenes.library import PACKAGED_ASSETS, PRETRAINING_STYLES, Library, load_library
from vltune_lab.scenes.render import Scene, SceneObject

torch.set_num_threads(1)

MODEL = PACKAGED_ASSETS / "clip-compact"
TINY = PretrainConfig(steps=3, batch_size=4, text_warmup_steps=2, checkpoint_every=2)


@pytest.fixture(scope="module")
def library() -> Library:
    return load_library(styles=PRETRAINING_STYLES, verify=False)


def stream_of(library: Library, seed: int = 5, first_step: int = 0) -> SceneStream:
    return SceneStream(
        library, seed=seed, batch_size=4, image_size=64, patch=8, first_step=first_step
    )


def assert_same(first: SceneBatch, second: SceneBatch) -> None:
    for name, value in vars(first).items():
        other = getattr(second, name)
        assert torch.equal(value, other) if isinstance(value, Tensor) else value == other, name


# Batches.


def test_a_batch_depends_on_seed_and_step_alone(library: Library) -> None:
    stream = stream_of(library)
    third = stream.batch(3)
    stream.batch(0)
    assert_same(stream.batch(3), third)
    assert_same(stream_of(library, first_step=9).batch(3), third)
    assert not torch.equal(stream.batch(4).images, third.images)
    assert not torch.equal(stream_of(library, seed=6).batch(3).images, third.images)


def test_a_resumed_stream_goes_on_where_it_stopped(library: Library) -> None:
    whole = list(itertools.islice(stream_of(library), 5))
    resumed = itertools.islice(make_loader(stream_of(library, first_step=3), workers=0), 2)
    for ours, theirs in zip(resumed, whole[3:], strict=True):
        assert_same(ours, theirs)


@pytest.mark.slow
def test_workers_change_no_batch(library: Library) -> None:
    loader = make_loader(stream_of(library, first_step=2), workers=2)
    for step, batch in zip(range(2, 7), loader, strict=False):
        assert_same(batch, stream_of(library).batch(step))


def test_shapes_and_agreement_of_labels(library: Library) -> None:
    C = len(library.classnames)
    batch = stream_of(library).batch(1)
    assert batch.images.shape == (4, 3, 64, 64)
    assert batch.images.dtype == torch.uint8
    assert batch.labels.shape == (4, C)
    assert batch.patch_labels.shape == (4, 64)
    assert len(batch.captions) == 4
    for image in range(4):
        shown = {index for index in batch.patch_labels[image].tolist() if index >= 0}
        present = set(batch.labels[image].nonzero().flatten().tolist())
        assert shown <= present
        assert {index for row, index, _ in batch.colours if row == image} == present


def thing(classname: str, colour: str) -> SceneObject:
    return SceneObject(classname, (0, 0, 8, 8), colour, "centre", 1.0, 64)


def test_patch_labels_by_hand() -> None:
    """24 x 24 pixels, 9 patches of 8 x 8 = 64 pixels; a quarter is 16. Objects: dog, cat, dog.

    Patch 0: 16 pixels of the dog -> dog. 1: 15 -> nothing. 2: 20 dog, 30 cat -> cat. 3: all of the
    second dog -> dog. 5: 12 pixels of each dog -> nothing, as none fills a quarter. Others: empty.
    """
    owner = np.full((24, 24), -1, dtype=np.int8)
    owner[0:2, 0:8] = 0
    owner[0:3, 8:13] = 0
    owner[0:4, 16:21] = 0
    owner[4:8, 16:22] = 1
    owner[6:8, 22:24] = 1
    owner[4, 22:24] = 1
    owner[8:16, 0:8] = 2
    owner[8:11, 16:20] = 0
    owner[11:14, 16:20] = 2
    assert (owner[0:8, 16:24] == 1).sum() == 30
    scene = Scene(
        np.zeros((24, 24, 3), dtype=np.uint8),
        "street",
        "noto",
        (thing("dog", "red"), thing("cat", "grey"), thing("dog", "blue")),
        owner,
    )
    empty = Scene(scene.image, "street", "noto", (), np.full((24, 24), -1, dtype=np.int8))
    images = np.stack([scene.image, empty.image])
    batch = describe_batch(("car", "cat", "dog"), [scene, empty], images, ["x", "y"], 8)
    assert batch.patch_labels[0].tolist() == [2, -1, 1, 2, -1, -1, -1, -1, -1]
    assert batch.patch_labels[1].tolist() == [-1] * 9
    assert batch.labels.tolist() == [[False, True, True], [False] * 3]
    assert batch.colours == [(0, 2, "red"), (0, 1, "grey"), (0, 2, "blue")]


# Losses.


def test_contrastive_loss_by_hand() -> None:
    """Identity: logits s on the diagonal, 0 elsewhere -> log(e^s + n - 1) - s, both ways."""
    scale, n = 3.0, 5
    loss = contrastive_loss(torch.eye(n), torch.eye(n), torch.tensor(scale))
    assert loss.item() == pytest.approx(math.log(math.exp(scale) + n - 1) - scale, abs=1e-6)
    swapped = contrastive_loss(torch.eye(n), torch.eye(n).roll(1, 0), torch.tensor(scale))
    assert swapped.item() == pytest.approx(math.log(math.exp(scale) + n - 1), abs=1e-6)


def test_grounded_loss_by_hand() -> None:
    """One labelled patch of cosines (1, 0, 0), scale 2: log(e^2 + 2) - 2; others take no part."""
    similarity = torch.zeros(2, 3, 3)
    similarity[0, 1, 0] = 1.0
    labels = torch.full((2, 3), -1)
    labels[0, 1] = 0
    loss = grounded_loss(similarity, labels, torch.tensor(2.0))
    assert loss.item() == pytest.approx(math.log(math.exp(2) + 2) - 2, abs=1e-6)
    nothing = similarity.requires_grad_()
    loss = grounded_loss(nothing, torch.full((2, 3), -1), torch.tensor(2.0))
    loss.backward()
    assert loss.item() == 0
    assert not nothing.grad.any()


def test_presence_loss_by_hand() -> None:
    """Cosine 0 everywhere, one image, M=1, C=1, absent.

    The patch costs softplus(-6), the image softplus(-4) / 4.
    """
    absent = torch.full((1, 1), -1)
    loss = presence_loss(torch.zeros(1, 1, 1), absent, torch.zeros(1, 1, dtype=torch.bool), Head())
    wanted = math.log1p(math.exp(-6)) + math.log1p(math.exp(-4)) / 4
    assert loss.item() == pytest.approx(wanted, abs=1e-6)


def test_presence_prefers_what_is_there() -> None:
    generator = torch.Generator().manual_seed(0)
    patch_labels = torch.randint(-1, 5, (2, 7), generator=generator)
    shown = F.one_hot(patch_labels.clamp(min=0), 5) * (patch_labels >= 0).unsqueeze(-1)
    labels = shown.amax(dim=1) > 0
    right = shown.float()
    wrong = (1 - shown).float()
    head = Head()
    losses = [
        presence_loss(value, patch_labels, labels, head).item()
        for value in (right, torch.zeros(2, 7, 5), wrong)
    ]
    assert losses == sorted(losses)
    assert losses[0] < 0.2 * losses[2]


def test_colour_loss_by_hand() -> None:
    """The object's two patches have mean (1, 1) / sqrt 2; phrases e1 (its own) and -e2, scale 2.

    Logits sqrt 2 and -sqrt 2 -> log(1 + e^(-2 sqrt 2)). An object without a patch is left out.
    """
    patches = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]])
    phrases = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    labels = torch.tensor([[4, 4, -1]])
    colours = [(0, 4, "0"), (0, 3, "1")]
    loss = colour_loss(patches, labels, colours, phrases, torch.tensor(2.0))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-2 * math.sqrt(2))), abs=1e-6)
    assert colour_loss(patches, labels, colours[1:], phrases, torch.tensor(2.0)).item() == 0


def test_spread_loss_by_hand() -> None:
    """Three phrases, two alike: each of the two has one square of 1, the third none."""
    phrases = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert spread_loss(phrases).item() == pytest.approx(2 / 3)
    assert spread_loss(torch.eye(4)).item() == 0.0


def test_every_class_has_one_phrase_with_its_name() -> None:
    names = ("apple", "wine glass", "scissors")
    phrases = class_phrases(names, np.random.default_rng(0))
    assert all(name in phrase for name, phrase in zip(names, phrases, strict=True))
    assert phrases == class_phrases(names, np.random.default_rng(0))
    assert all("{" not in text.format(a="an apple", c="apple") for text in TEMPLATES)


# The model and its training.


def test_phrases_are_open_clips_text_features() -> None:
    model, tokenizer = build_model(MODEL, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        texts = [
            "a cat",
            "two wine glasses, a red car and three dogs at the top left",
            "",
        ]
        ours = encode_phrases(model, tokenizer, texts)
        theirs = model.encode_text(tokenizer(texts), normalize=True)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_weights_are_a_function_of_the_seed() -> None:
    first, again, other = (build_model(MODEL, seed)[0].state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_learning_rate() -> None:
    config = PretrainConfig(steps=110, warmup_steps=10, learning_rate=1e-3)
    assert learning_rate_at(0, config) == pytest.approx(1e-4)
    assert learning_rate_at(9, config) == pytest.approx(1e-3)
    assert learning_rate_at(10, config) == pytest.approx(1e-3)
    assert learning_rate_at(60, config) == pytest.approx(5e-4)
    assert learning_rate_at(110, config) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch_size": 1}, {"learning_rate": 0}])
def test_a_wrong_recipe_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="needs steps"):
        from_mapping(PretrainConfig, wrong, "recipe")


def test_every_term_reaches_the_weights(library: Library, tmp_path: Path) -> None:
    state, tokenizer = start(TINY, MODEL, tmp_path / "none.pt", "cpu", compile_trunk=False)
    batch = stream_of(library).batch(0)
    terms = batch_loss(state, tokenizer, batch, library.classnames, TINY, np.random.default_rng(0))
    assert set(terms) == {"contrastive", "grounded", "presence", "spread", "colours"}
    for name, value in terms.items():
        assert torch.isfinite(value), name
        ends = [state.model.text_projection]
        if name != "spread":  # a matter of texts alone
            ends.append(state.model.visual.head.proj.weight)
        reached = torch.autograd.grad(value, ends, retain_graph=True)
        assert all(gradient.any() for gradient in reached), name
    sum(terms.values()).backward()
    without = [n for n, p in state.model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def run(steps: int, work: Path) -> PretrainState:
    config = dataclasses.replace(TINY, steps=steps)
    return pretrain(config, model_folder=MODEL, work=work, workers=0, compile_trunk=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> PretrainState:
    return run(3, tmp_path_factory.mktemp("pretrain"))


@pytest.mark.slow
def test_a_resumed_run_is_an_undisturbed_run(tmp_path: Path) -> None:
    """The warm-up of 300 steps does not depend on the number of steps."""
    whole = run(5, tmp_path / "whole")
    run(3, tmp_path / "halves")
    halves = run(5, tmp_path / "halves")
    assert (halves.step, whole.step) == (5, 5)
    for ours, theirs in ((halves.model, whole.model), (halves.head, whole.head)):
        wanted = theirs.state_dict()
        for key, value in ours.state_dict().items():
            assert torch.equal(value, wanted[key]), key
    untrained, _ = build_model(MODEL, TINY.seed)
    moved = whole.model.state_dict()
    assert all(
        not torch.equal(value, moved[key])
        for key, value in untrained.state_dict().items()
        if key != "logit_scale"
    )
    recipe = json.loads((tmp_path / "halves/recipe.json").read_text())
    assert (recipe["steps"], recipe["batch_size"]) == (5, 4)
    again = run(5, tmp_path / "halves")
    assert again.step == 5
    assert torch.equal(again.model.text_projection, halves.model.text_projection)


@pytest.mark.slow
def test_another_recipe_does_not_continue_a_checkpoint(tmp_path: Path) -> None:
    run(2, tmp_path)
    other = dataclasses.replace(TINY, batch_size=5)
    with pytest.raises(ConfigError, match=r"checkpoint\.pt.*batch_size was 4, is 5"):
        start(other, MODEL, tmp_path / "checkpoint.pt", "cpu", compile_trunk=False)
    longer, _ = start(TINY, MODEL, tmp_path / "checkpoint.pt", "cpu", compile_trunk=False)
    assert longer.schedule == [[0, 2], [2, 3]]


@pytest.mark.slow
def test_published_weights_are_those_of_the_card(trained: PretrainState, tmp_path: Path) -> None:
    folder = tmp_path / "clip-compact"
    folder.mkdir()
    shutil.copy(MODEL / "open_clip_config.json", folder)
    card = publish(trained, TINY, folder, "cpu", num_images=6)
    assert json.loads((folder / "card.json").read_text()) == card
    content = (folder / WEIGHTS).read_bytes()
    assert card["weights"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert card["weights"]["bytes"] == len(content)
    assert (card["steps"], card["data"]["images_seen"]) == (3, 12)
    assert card["recipe"]["seed"] == TINY.seed
    assert set(card["zero_shot"]) == {"pretraining", "federation", "shifted"}
    for figures in card["zero_shot"].values():
        assert figures["num_images"] == 6
        assert all(0 <= figures[key] <= 1 for key in ("pooled_mAP", "patch_mAP", "pointing"))
    text = (folder / "README.md").read_text()
    assert card["weights"]["sha256"] in text
    assert "12 rendered images" in text

    stored, state = load_file(folder / WEIGHTS), trained.model.state_dict()
    assert set(stored) == set(state)
    for key, value in stored.items():
        wanted = state[key].half() if state[key].is_floating_point() else state[key]
        assert value.dtype == wanted.dtype
        assert torch.equal(value, wanted), key


@pytest.mark.slow
def test_the_product_loads_what_was_published(
    trained: PretrainState, library: Library, tmp_path: Path
) -> None:
    """Also: pixels were normalised in training as the checkpoint's preprocessing does it."""
    folder = tmp_path / "clip-compact"
    folder.mkdir()
    shutil.copy(MODEL / "open_clip_config.json", folder)
    card = publish(trained, TINY, folder, "cpu", num_images=4)
    backbone = load_clip(
        BackboneConfig("clip-compact", str(folder), card["weights"]["sha256"]), bfloat16=False
    )
    images = stream_of(library).batch(0).images
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    pixels = torch.stack([backbone.preprocess(picture) for picture in pictures])
    torch.testing.assert_close(pixels, normalise_pixels(images), rtol=0, atol=1e-6)
    trained.model.eval()
    with torch.no_grad():
        tokens = trained.model.visual.head(trained.model.visual.trunk.forward_features(pixels))
    trained.model.train()
    features = backbone.encode_images(pixels)
    assert (features.patch_features * F.normalize(tokens, dim=-1)).sum(-1).min() > 0.9999
    pooled = F.normalize(tokens.mean(dim=1), dim=-1)
    assert (features.image_features * pooled).sum(-1).min() > 0.9999
