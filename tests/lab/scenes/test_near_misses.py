"""Near misses are wrong for their prompt, in one thing."""

import numpy as np
import pytest

from vltune.geneval import Detection, GenevalRules, fault_of
from vltune.geneval_prompts import TAGS, GenevalPrompt
from vltune_lab.scenes.geneval_prompts import FIRST_CLASSES, make_prompts
from vltune_lab.scenes.geneval_scenes import PromptPainter
from vltune_lab.scenes.library import load_library
from vltune_lab.scenes.near_misses import near_miss
from vltune_lab.scenes.render import Scene

STYLES = ("twemoji",)


def truth(scene: Scene) -> list[Detection]:
    """What a judge without error sees."""
    return [
        Detection(item.classname, 1.0, (x, y, x + width, y + height), item.colour)
        for item in scene.objects
        for x, y, width, height in [item.box]
    ]


@pytest.mark.slow
@pytest.mark.parametrize("tag", TAGS)
def test_a_perfect_judge_takes_every_true_picture_and_no_near_miss(tag: str) -> None:
    painter = PromptPainter(load_library(styles=STYLES, verify=False))
    rules = GenevalRules()
    prompts: list[GenevalPrompt] = make_prompts(FIRST_CLASSES, per_tag=30, seed=5, tags=(tag,))
    for seed, prompt in enumerate(prompts):
        rng = np.random.Generator(np.random.PCG64(seed))
        assert fault_of(truth(painter.draw(prompt, rng, styles=STYLES)), prompt, rules) is None
        other = near_miss(prompt, FIRST_CLASSES, rng)
        assert fault_of(truth(painter.draw(other, rng, styles=STYLES)), prompt, rules)
