"""Rules of GenEval on detections written by hand; boxes are left, top, right, bottom."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from vltune.geneval import (
    Detection,
    GenevalRules,
    Judge,
    fault_of,
    relations,
    score_images,
    summarise,
)
from vltune.geneval_prompts import GenevalPrompt, prompt_of

RULES = GenevalRules()
LEFT, RIGHT, TOP = (0.0, 20.0, 20.0, 40.0), (40.0, 20.0, 60.0, 40.0), (20.0, 0.0, 40.0, 16.0)


def prompt(
    tag: str, *include: dict[str, Any], exclude: Sequence[dict[str, Any]] = ()
) -> GenevalPrompt:
    entries = [{"count": 1} | entry for entry in include]
    content = {"tag": tag, "include": entries, "prompt": "a photo"}
    return prompt_of(content | ({"exclude": list(exclude)} if exclude else {}), "here")


def see(name: str, score: float = 0.95, box: Any = LEFT, color: str | None = None) -> Detection:
    return Detection(name, score, box, color)


def test_presence_by_confidence() -> None:
    dog = prompt("single_object", {"class": "dog"})
    assert fault_of([see("dog", 0.31)], dog, RULES) is None
    assert fault_of([see("dog", 0.3)], dog, RULES) == "0 of 1 x dog"
    assert fault_of([see("cat")], dog, RULES) == "0 of 1 x dog"
    assert fault_of([see("dog"), see("cat")], dog, RULES) is None
    both = prompt("two_object", {"class": "dog"}, {"class": "cat"})
    assert fault_of([see("dog")], both, RULES) == "0 of 1 x cat"
    assert fault_of([see("cat"), see("dog")], both, RULES) is None


def test_counts_are_exact_at_a_higher_confidence() -> None:
    two = prompt("counting", {"class": "dog", "count": 2}, exclude=[{"class": "dog", "count": 3}])
    assert fault_of([see("dog"), see("dog", 0.91)], two, RULES) is None
    assert fault_of([see("dog"), see("dog", 0.89)], two, RULES) == "1 of 2 x dog"
    assert fault_of([see("dog")] * 3, two, RULES) == "3 x dog"
    assert fault_of([see("dog")] * 2 + [see("dog", 0.5)], two, RULES) is None


def test_colour_is_of_the_most_confident() -> None:
    red = prompt("colors", {"class": "dog", "color": "red"})
    seen = [see("dog", 0.6, color="blue"), see("dog", 0.8, color="red")]
    assert fault_of(seen, red, RULES) is None
    assert fault_of([see("dog", 0.9, color="blue"), *seen], red, RULES) == "dog not red"
    assert fault_of([see("dog")], red, RULES) == "dog not red"


def test_attributes_stay_with_their_objects() -> None:
    asked = prompt(
        "color_attr", {"class": "dog", "color": "red"}, {"class": "cat", "color": "blue"}
    )
    assert fault_of([see("dog", color="red"), see("cat", color="blue")], asked, RULES) is None
    swapped = fault_of([see("dog", color="blue"), see("cat", color="red")], asked, RULES)
    assert swapped == "dog not red; cat not blue"


def test_position_is_relative_to_the_earlier_entry() -> None:
    asked = prompt("position", {"class": "dog"}, {"class": "cat", "position": ["right of", 0]})
    assert fault_of([see("dog", box=LEFT), see("cat", box=RIGHT)], asked, RULES) is None
    assert fault_of([see("dog", box=RIGHT), see("cat", box=LEFT)], asked, RULES)
    assert fault_of([see("dog", box=TOP), see("cat", box=TOP)], asked, RULES)
    missing = fault_of([see("cat", box=RIGHT)], asked, RULES)
    assert missing == "0 of 1 x dog; nothing for cat to be right of"


def test_relations_by_hand() -> None:
    """Middles 40 apart across, extents 40 together: (40 - 0.1 * 40) / 40 = 0.9 across.

    Diagonal: middles (30, 30) apart, length 42.4, extents 40: (30 - 4) / 42.4 = 0.61 both ways.
    Near: middles 4 apart, 4 - 0.1 * 40 = 0: no relation. Middles 6 apart: 2 / 6 = 0.33 is no
    direction yet; without the margin 6 / 6 is one.
    """
    assert relations(LEFT, RIGHT) == {"left of"}
    assert relations(RIGHT, LEFT) == {"right of"}
    assert relations((0, 0, 20, 20), (30, 30, 50, 50)) == {"left of", "above"}
    assert relations((0, 0, 20, 20), (4, 0, 24, 20)) == frozenset()
    assert relations((0, 0, 20, 20), (0, 0, 20, 20)) == frozenset()
    assert relations((0, 0, 20, 20), (6, 0, 26, 20)) == frozenset()
    assert relations((0, 0, 20, 20), (6, 0, 26, 20), overlap=0.0) == {"left of"}


def test_at_most_sixteen_of_a_class_count() -> None:
    refused = prompt("single_object", {"class": "dog"}, exclude=[{"class": "dog", "count": 16}])
    assert fault_of([see("dog")] * 20, refused, RULES) == "16 x dog"


def test_overall_is_the_mean_of_the_families_not_of_the_pictures() -> None:
    """Single 3 of 4, counting 0 of 1: (0.75 + 0) / 2."""
    scores = summarise(["single_object"] * 4 + ["counting"], [True, True, True, False, False])
    assert scores.overall == 0.375
    assert scores.by_tag == {"single_object": 0.75, "counting": 0.0}
    assert scores.num_images == {"single_object": 4, "counting": 1}


class Written:
    """A judge that reads the class from the picture's first pixel."""

    classnames = frozenset({"dog", "cat"})
    rules = RULES

    def detect(self, images: Tensor, wanted: Sequence[frozenset[str]]) -> list[list[Detection]]:
        names = ["dog" if image[0, 0, 0] > 0.5 else "cat" for image in images]
        return [[see(name)] * (name in asked) for name, asked in zip(names, wanted, strict=True)]


def test_pictures_are_scored_in_batches() -> None:
    judge = Written()
    assert isinstance(judge, Judge)
    asked = [
        prompt("single_object", {"class": name}) for name in ("dog", "cat", "dog", "dog", "cat")
    ]
    images = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])[:, None, None, None].expand(5, 3, 4, 4)
    assert score_images(judge, images, asked, batch_size=2).overall == 0.8


def test_bad_calls_are_refused() -> None:
    bear = prompt("single_object", {"class": "bear"})
    images = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match="does not know 'bear'"):
        score_images(Written(), images, [bear])
    with pytest.raises(ValueError, match="no prompt"):
        score_images(Written(), images[:0], [])
    with pytest.raises(ValueError, match="1 images for 2 prompts"):
        score_images(Written(), images, [prompt("single_object", {"class": "dog"})] * 2)
    with pytest.raises(ValueError, match=r"confidence is 1\.5"):
        GenevalRules(confidence=1.5)
