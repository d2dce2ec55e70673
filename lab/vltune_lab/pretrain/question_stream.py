"""Batches for florence2-compact: scenes with questions, texts to write, and what lies where."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vltune_lab.pretrain.stream import StepStream, label_patches, vary_colours
from vltune_lab.pretrain.tokenizer import lexicon_text
from vltune_lab.scenes.captions import caption
from vltune_lab.scenes.library import Library
from vltune_lab.scenes.questions import COLOURS, KINDS, ask
from vltune_lab.scenes.render import Scene
from vltune_lab.scenes.world import load_priors

CAPTION_PROMPT = "What does the image describe?"
"""What Florence-2's processor makes of its task `<CAPTION>`."""
COPY_PROMPT = "Write: {text}"
VARIED = 0.3
"""Share of images whose colours are changed; of these no colour is told."""
FINE_PATCH = 8
CELL = 16
"""Pixels of one image token."""


@dataclass(frozen=True)
class Places:
    """Where things are, for the grounding terms.

    Attributes:
        patches: Class that fills most of each fine patch, C for none, (B, 64), int64.
        covers: Classes that fill at least an eighth of a cell, (B, M, C), bool.
        centres: Classes with an object's centre in a cell, (B, M, C), bool.
        colours: Colour of the one object centred in a cell, -1 for none or several, (B, M), int64.
        scenes: Index of what the background shows, (B,), int64.
    """

    patches: Tensor
    covers: Tensor
    centres: Tensor
    colours: Tensor
    scenes: Tensor


@dataclass(frozen=True)
class QuestionBatch:
    """One batch.

    Attributes:
        images: (B, 3, H, W), uint8.
        places: Ground truth of the grounding terms.
        questions: (image, prompt, answer) with short answers.
        texts: (image, prompt, answer): captions, and lexicon phrases to copy.
    """

    images: Tensor
    places: Places
    questions: list[tuple[int, str, str]]
    texts: list[tuple[int, str, str]]


class QuestionStream(StepStream):
    """Batches of florence2-compact.

    Args:
        library: Sprites of the pre-training styles.
        seed: Of the run.
        batch_size: Images a batch.
        image_size: Pixels, a multiple of the cell.
        questions: Questions an image.
        texts: Captions, and as many phrases to copy, in a batch.
        kinds: Weight of each kind of question.
    """

    def __init__(
        self,
        library: Library,
        *,
        seed: int,
        batch_size: int,
        image_size: int,
        questions: int,
        texts: int,
        kinds: dict[str, float],
    ) -> None:
        super().__init__(library, seed=seed, batch_size=batch_size, image_size=image_size)
        self.questions = questions
        self.texts = texts
        self.kinds = {kind: kinds[kind] for kind in KINDS if kinds.get(kind, 0) > 0}

    def batch(self, step: int) -> QuestionBatch:
        """Render batch number `step` and ask about it."""
        scenes, images, varied = [], [], []
        questions: list[tuple[int, str, str]] = []
        captions: list[tuple[int, str, str]] = []
        copies: list[tuple[int, str, str]] = []
        for row, (scene, rng) in enumerate(self.scenes(step)):
            sentence = caption(scene, rng)
            is_varied = bool(rng.random() < VARIED)
            scenes.append(scene)
            varied.append(is_varied)
            images.append(vary_colours(scene.image, rng) if is_varied else scene.image)
            kinds = {k: w for k, w in self.kinds.items() if k != "colour" or not is_varied}
            for pair in ask(scene, self.library.classnames, rng, count=self.questions, kinds=kinds):
                questions.append((row, pair.question, pair.answer))
            if not is_varied and len(captions) < self.texts:
                captions.append((row, CAPTION_PROMPT, sentence))
            if len(copies) < self.texts:
                text = lexicon_text(rng)
                copies.append((row, COPY_PROMPT.format(text=text), text))
        places = locate(self.library.classnames, scenes)
        places.colours[torch.tensor(varied)] = -1
        return QuestionBatch(
            torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
            places,
            questions,
            captions + copies,
        )


def locate(classnames: tuple[str, ...], scenes: list[Scene]) -> Places:
    """Ground truth of the grounding terms for some scenes of one size."""
    index_of = {name: index for index, name in enumerate(classnames)}
    scene_index = {name: index for index, name in enumerate(sorted(load_priors().scenes))}
    side = scenes[0].image.shape[0] // CELL
    C, B = len(classnames), len(scenes)
    patches = torch.empty(B, (side * CELL // FINE_PATCH) ** 2, dtype=torch.int64)
    covers = torch.zeros(B, side * side, C, dtype=torch.bool)
    centres = torch.zeros(B, side * side, C, dtype=torch.bool)
    colours = torch.full((B, side * side), -1)
    for row, scene in enumerate(scenes):
        classes = np.array([index_of[item.classname] for item in scene.objects], dtype=np.int64)
        fine = label_patches(scene.owner, classes, FINE_PATCH)
        patches[row] = torch.from_numpy(np.where(fine < 0, C, fine))
        _locate_cells(scene, classes, covers[row], centres[row], colours[row])
    shown = torch.tensor([scene_index[scene.place] for scene in scenes])
    return Places(patches, covers, centres, colours, shown)


def _locate_cells(
    scene: Scene, classes: np.ndarray, covers: Tensor, centres: Tensor, colours: Tensor
) -> None:
    """Fill the rows of one scene, in place."""
    side = scene.owner.shape[0] // CELL
    tiles = scene.owner.reshape(side, CELL, side, CELL).transpose(0, 2, 1, 3).reshape(side**2, -1)
    seen: set[int] = set()
    for number, item in enumerate(scene.objects):
        filled = (tiles == number).sum(axis=1) >= CELL * CELL // 8
        covers[torch.from_numpy(np.flatnonzero(filled)), int(classes[number])] = True
        x, y, width, height = item.box
        column, line = (
            min(side - 1, int((low + extent / 2) // CELL))
            for low, extent in ((x, width), (y, height))
        )
        cell = line * side + column
        centres[cell, int(classes[number])] = True
        colours[cell] = -1 if cell in seen else COLOURS.index(item.colour)
        seen.add(cell)
