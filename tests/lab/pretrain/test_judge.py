"""Training of the world's judge, on a few pictures."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vltune.backbones.center_detector import CenterDetector, find_peaks, load_compact_judge
from vltune.config import ConfigError
from vltune.geneval import Detection, GenevalRules
from vltune_lab.pretrain.judge import losses, pretrain
from vltune_lab.pretrain.judge_card import publish
from vltune_lab.pretrain.judge_evaluation import (
    choose_rules,
    detection_figures,
    draw_pictures,
    judge_figures,
    overlap_of,
)
from vltune_lab.pretrain.judge_recipe import JudgeRecipe
from vltune_lab.pretrain.judge_stream import (
    JudgeBatch,
    JudgeStream,
    degrade,
    locate,
    shuffle_tiles,
)
from vltune_lab.scenes.geneval_prompts import FIRST_CLASSES
from vltune_lab.scenes.library import PACKAGED_ASSETS, Library, load_library
from vltune_lab.scenes.questions import COLOURS
from vltune_lab.scenes.render import SceneObject

torch.set_num_threads(1)
TINY = JudgeRecipe(
    steps=4, batch_size=4, warmup_steps=1, widths=(4, 6, 8, 8), styles=("twemoji",),
    checkpoint_every=2,
)  # fmt: skip
JUDGE = PACKAGED_ASSETS / "judge-compact"


@pytest.fixture(scope="module")
def library() -> Library:
    return load_library(styles=("twemoji",), verify=False)


def thing(name: str, box: tuple[int, int, int, int], colour: str = "red") -> SceneObject:
    return SceneObject(name, box, colour, "centre", 1.0, 10)


def test_targets_are_what_the_detector_reads() -> None:
    """Targets turned into a confident output give the objects back to within a pixel."""
    objects = (thing("dog", (4, 8, 20, 24)), thing("bus", (33, 30, 25, 30), "blue"))
    heat, classes, colours, boxes = locate(("bus", "dog"), [objects], 64)
    assert (heat == 1).sum() == 2
    output = confident_output(heat, classes, colours, boxes)
    peaks = find_peaks(output)
    found = {
        (int(c), COLOURS[int(k)]): (box * 64).round().tolist()
        for score, c, k, box in zip(
            peaks.scores[0], peaks.classes[0], peaks.colours[0], peaks.boxes[0], strict=True
        )
        if score > 0.5
    }
    assert found == {(1, "red"): [4, 8, 24, 32], (0, "blue"): [33, 30, 58, 60]}


def confident_output(heat, classes, colours, boxes):
    from torch.nn.functional import one_hot

    from vltune.backbones.center_detector import DetectorOutput

    return DetectorOutput(
        torch.logit(heat, eps=1e-4),
        20.0 * one_hot(classes.clamp(min=0), 2).permute(0, 3, 1, 2),
        20.0 * one_hot(colours, len(COLOURS)).permute(0, 3, 1, 2),
        boxes,
    )


def test_right_targets_have_no_loss_and_wrong_ones_do() -> None:
    heat, classes, colours, boxes = locate(("bus", "dog"), [(thing("dog", (4, 8, 20, 24)),)], 64)
    batch = JudgeBatch(torch.zeros(1, 3, 64, 64), heat, classes, colours, boxes)
    output = confident_output(heat, classes, colours, boxes)
    right = losses(output._replace(middles=torch.where(heat == 1, 12.0, -12.0)), batch)
    assert max(float(value) for value in right.values()) < 1e-3
    wrong = losses(output._replace(classes=-output.classes, boxes=output.boxes + 1), batch)
    assert float(wrong["classes"]) > 10
    assert float(wrong["boxes"]) == pytest.approx(4.0)


def test_an_empty_picture_has_a_finite_loss() -> None:
    batch = JudgeBatch(torch.zeros(1, 3, 64, 64), *locate(("bus", "dog"), [()], 64))
    terms = losses(confident_output(*batch[1:]), batch)
    assert all(torch.isfinite(value) for value in terms.values())
    assert float(terms["classes"]) == 0


def test_shuffling_keeps_tiles_and_degrading_keeps_the_picture() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    image = rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)
    shuffled = shuffle_tiles(image, rng)
    assert (shuffled != image).any()
    assert sorted(shuffled.ravel()) == sorted(image.ravel())
    smooth = np.full((64, 64, 3), 99, np.uint8)
    assert abs(degrade(smooth, rng).astype(int) - 99).mean() < 12


def test_batches_depend_on_seed_and_number_alone(library: Library) -> None:
    first, again = (JudgeStream(library, TINY).batch(3) for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first.images != JudgeStream(library, TINY).batch(4).images).any()


@pytest.mark.slow
def test_a_run_resumes_where_it_was_and_is_published(tmp_path: Path) -> None:
    whole = pretrain(TINY, work=tmp_path / "whole", workers=0)
    pretrain(replace(TINY, steps=2), work=tmp_path / "parts", workers=0)
    resumed = pretrain(TINY, work=tmp_path / "parts", workers=0)
    assert resumed.step == whole.step == 4
    assert resumed.schedule == [[0, 2], [2, 4]]
    with pytest.raises(ConfigError, match="another recipe: batch_size differ"):
        pretrain(replace(TINY, batch_size=8), work=tmp_path / "parts", workers=0)
    card = publish(whole, tmp_path / "judge", "cpu", per_tag=2)
    assert load_compact_judge(tmp_path / "judge").rules == GenevalRules(**card["rules"])
    assert "near misses" in (tmp_path / "judge" / "README.md").read_text()
    assert set(card["figures"]) == {"pretraining", "federation", "shifted"}


def test_wrong_recipes() -> None:
    for change in ({"steps": 0}, {"learning_rate": 2.0}, {"world_share": 1.5}):
        with pytest.raises(ConfigError, match="pretrain: "):
            replace(TINY, **change)


def test_figures_by_hand() -> None:
    """Two dogs, one bus. Seen: a dog rightly (0.9), a dog beside it (0.8), a dog rightly (0.4).

    AP of dog: precision 1 at recall 1/2, 2/3 at recall 1: (1 + 2/3) / 2 = 0.8333; of bus 0: mAP
    0.4167. Above 0.5: two seen, one right, three true: F1 = 2 / 5. Its colour is right.
    """
    there = [
        thing("dog", (0, 0, 10, 10)),
        thing("dog", (20, 20, 10, 10)),
        thing("bus", (40, 0, 9, 9)),
    ]
    seen = [
        Detection("dog", 0.9, (0, 0, 10, 10), "red"),
        Detection("dog", 0.8, (8, 8, 18, 18), "red"),
        Detection("dog", 0.4, (20, 20, 30, 28), "blue"),
    ]
    figures = detection_figures([seen], [there], 0.5)
    assert figures["mAP"] == pytest.approx(0.4167, abs=1e-4)
    assert figures["F1"] == pytest.approx(0.4)
    assert figures["colour"] == 1.0
    assert overlap_of((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert overlap_of((0, 0, 1, 1), (2, 2, 3, 3)) == 0.0


@pytest.mark.slow
def test_the_published_judge_sees_the_world() -> None:
    """Its own bar: most true pictures of the first tier are right, hardly any near miss is."""
    judge = load_compact_judge(JUDGE)
    card = json.loads((JUDGE / "card.json").read_text())
    assert (JUDGE / "model.safetensors").stat().st_size < 3e6
    assert sum(p.numel() for p in CenterDetector(judge.config).parameters()) < 1.5e6
    library = load_library(styles=("twemoji", "noto"), verify=False)
    pictures = draw_pictures(library, FIRST_CLASSES, ("twemoji", "noto"), per_tag=15, seed=77)
    figures = judge_figures(judge, pictures)
    assert figures.right.overall > 0.75
    assert figures.missed.overall < 0.1
    assert (
        abs(
            figures.right.overall - card["figures"]["pretraining"]["12 classes"]["right"]["overall"]
        )
        < 0.15
    )
    chosen = choose_rules(judge, pictures)
    assert 0 < chosen.confidence < 1
