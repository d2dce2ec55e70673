import json
from collections import Counter

import numpy as np
import pytest

from vltune.geneval_prompts import TAGS, as_mapping, prompt_of
from vltune_lab.scenes.geneval_prompts import COLOURLESS, FIRST_CLASSES, draw_prompt, make_prompts
from vltune_lab.scenes.library import load_library


@pytest.fixture(scope="module")
def classnames() -> tuple[str, ...]:
    return load_library(styles=("twemoji",), verify=False).classnames


def test_every_family_is_there_and_no_prompt_twice(classnames: tuple[str, ...]) -> None:
    made = make_prompts(classnames, per_tag=30, seed=3)
    assert Counter(item.tag for item in made) == dict.fromkeys(TAGS, 30)
    assert len({item.prompt for item in made}) == len(made)
    assert made == make_prompts(classnames, per_tag=30, seed=3)
    assert made != make_prompts(classnames, per_tag=30, seed=4)


def test_a_small_vocabulary_gives_all_it_has() -> None:
    """12 classes: 12 single objects, 12 x 3 counts."""
    made = Counter(item.tag for item in make_prompts(FIRST_CLASSES, per_tag=60, seed=0))
    assert made["single_object"] == 12
    assert made["counting"] == 36
    assert made["position"] == 60


def test_the_production_reader_takes_them_and_gives_them_back(classnames: tuple[str, ...]) -> None:
    for prompt in make_prompts(classnames, per_tag=20, seed=1):
        content = json.loads(json.dumps(as_mapping(prompt)))
        assert prompt_of(content, "line") == prompt


def test_forms_of_the_published_file() -> None:
    rng = np.random.Generator(np.random.PCG64(5))
    counting = as_mapping(draw_prompt("counting", ("dog", "bus"), rng))
    (wanted,), (refused,) = counting["include"], counting["exclude"]
    assert refused == {"class": wanted["class"], "count": wanted["count"] + 1}
    position = as_mapping(draw_prompt("position", ("dog", "bus"), rng))
    anchor, placed = position["include"]
    relation = placed["position"][0]
    assert placed["position"] == [relation, 0]
    assert position["prompt"] == f"a photo of a {placed['class']} {relation} a {anchor['class']}"
    colours = as_mapping(draw_prompt("color_attr", ("dog", "bus"), rng))["include"]
    assert colours[0]["color"] != colours[1]["color"]


def test_no_orange_is_asked_for_in_a_colour() -> None:
    names = ("orange", "person", "dog", "bus")
    for prompt in make_prompts(names, per_tag=40, seed=2, tags=("colors", "color_attr")):
        assert not prompt.classnames & COLOURLESS
