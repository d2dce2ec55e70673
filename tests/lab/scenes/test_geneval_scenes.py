from collections import Counter

import numpy as np
import pytest

from vltune.geneval_prompts import COLORS, GenevalPrompt, Included
from vltune_lab.scenes.geneval_prompts import FIRST_CLASSES, make_prompts
from vltune_lab.scenes.geneval_scenes import PromptPainter
from vltune_lab.scenes.library import PRETRAINING_STYLES, Library, load_library
from vltune_lab.scenes.plan import colour_name
from vltune_lab.scenes.render import Scene
from vltune_lab.scenes.tint import TARGETS, tint_sprite

SIDE = 64
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def library() -> Library:
    return load_library(styles=PRETRAINING_STYLES, verify=False)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def holds(scene: Scene, prompt: GenevalPrompt) -> bool:
    """Whether a scene shows what the prompt says, read from its objects alone."""
    wanted = Counter()
    for item in prompt.include:
        wanted[item.classname] += item.count
    if Counter(item.classname for item in scene.objects) != wanted:
        return False
    for item in prompt.include:
        found = [thing for thing in scene.objects if thing.classname == item.classname]
        if item.color and any(thing.colour != item.color for thing in found):
            return False
        if item.position:
            relation, target = item.position
            (thing,) = found
            (other,) = (o for o in scene.objects if o.classname == prompt.include[target].classname)
            axis = 0 if relation in ("left of", "right of") else 1
            own, its = (o.box[axis] + o.box[axis + 2] / 2 for o in (thing, other))
            if (own < its) != (relation in ("left of", "above")):
                return False
    return True


def test_scenes_show_what_the_prompt_says(library: Library) -> None:
    painter = PromptPainter(library, size=SIDE)
    for seed, prompt in enumerate(make_prompts(FIRST_CLASSES, per_tag=12, seed=0)):
        scene = painter.draw(prompt, rng(seed), styles=PRETRAINING_STYLES)
        assert holds(scene, prompt), prompt.prompt
        assert scene.image.shape == (SIDE, SIDE, 3)
        assert min(item.visible for item in scene.objects) > 0.6
        for x, y, width, height in (item.box for item in scene.objects):
            assert min(x, y) >= 0
            assert max(x + width, y + height) <= SIDE


def test_the_same_stream_draws_the_same_picture(library: Library) -> None:
    painter = PromptPainter(library, size=SIDE)
    prompt = make_prompts(FIRST_CLASSES, per_tag=1, seed=0)[-1]
    first, again = (painter.draw(prompt, rng(7), styles=PRETRAINING_STYLES) for _ in range(2))
    assert (first.image == again.image).all()
    assert (first.image != painter.draw(prompt, rng(8), styles=PRETRAINING_STYLES).image).any()


def test_every_colour_is_called_by_its_name_in_every_drawing(library: Library) -> None:
    assert set(TARGETS) == set(COLORS)
    for (_, name), group in library.sprites.items():
        if name in FIRST_CLASSES:
            for colour in COLORS:
                mean = tint_sprite(group[0], colour).mean_colour
                assert colour_name(mean * 0.95) == colour_name(mean * 1.05) == colour


def test_too_much_or_unknown_is_refused(library: Library) -> None:
    painter = PromptPainter(library)
    with pytest.raises(ValueError, match="can draw 'a dragon'"):
        painter.draw(
            GenevalPrompt("single_object", "a dragon", (Included("dragon"),)),
            rng(), styles=PRETRAINING_STYLES,
        )  # fmt: skip
    with pytest.raises(ValueError, match="5 objects; at most 4"):
        painter.draw(
            GenevalPrompt("counting", "five dogs", (Included("dog", 5),)),
            rng(), styles=PRETRAINING_STYLES,
        )  # fmt: skip


def test_without_variety_a_drawing_has_one_place(library: Library) -> None:
    """Of 40 pictures of one prompt: boxes are those of the few drawings, corners eleven greys."""
    (prompt,) = make_prompts(FIRST_CLASSES, per_tag=1, seed=0, tags=("single_object",))
    counts = {}
    for variety in (0.0, 1.0):
        painter = PromptPainter(library, size=SIDE, plain=1.0, variety=variety)
        scenes = [painter.draw(prompt, rng(i), styles=PRETRAINING_STYLES) for i in range(40)]
        counts[variety] = len({scene.objects[0].box for scene in scenes})
        if variety == 0.0:
            corners = {tuple(scene.image[0, 0].tolist()) for scene in scenes}
            assert corners <= {(grey, grey, grey) for grey in range(40, 241, 20)}
    drawings = sum(len(library.sprites[style, prompt.include[0].classname])
                   for style in PRETRAINING_STYLES)  # fmt: skip
    assert counts[0.0] <= 2 * drawings < counts[1.0]
