"""Words for scenes: captions of whole images and phrases of single objects."""

from collections import Counter

import numpy as np

from vltune_lab.scenes.render import Scene, SceneObject

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
PLURALS = {
    "person": "people",
    "bus": "buses",
    "knife": "knives",
    "sheep": "sheep",
    "couch": "couches",
    "sandwich": "sandwiches",
    "wine glass": "wine glasses",
    "scissors": "scissors",
    "toothbrush": "toothbrushes",
    "computer mouse": "computer mice",
}
PLACES = {
    "street": "on a street",
    "waterfront": "at a waterfront",
    "meadow": "on a meadow",
    "park": "in a park",
    "forest": "in a forest",
    "savanna": "in a savanna",
    "station": "in a station",
    "warehouse": "in a warehouse",
    "kitchen": "in a kitchen",
    "cafe": "in a cafe",
    "living room": "in a living room",
    "bedroom": "in a bedroom",
    "office": "in an office",
    "bathroom": "in a bathroom",
    "beach": "on a beach",
    "sky": "in the sky",
    "snow": "in the snow",
}


def article(noun: str) -> str:
    """Return the noun with its indefinite article; scissors has none."""
    if noun.endswith("scissors"):
        return noun
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    """Return the plural of a class name."""
    return PLURALS.get(noun, f"{noun}s")


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Describe the whole scene: counts, and sometimes colours, positions and the place."""
    counts = Counter(item.classname for item in scene.objects)
    parts = []
    for name, count in counts.items():
        if count > 1:
            parts.append(f"{NUMBERS[min(count, 6)]} {plural(name)}")
            continue
        item = next(item for item in scene.objects if item.classname == name)
        parts.append(object_phrase(item, rng))
    order = rng.permutation(len(parts))
    parts = [parts[index] for index in order]
    text = (
        parts[0]
        if len(parts) == 1
        else ", ".join(parts[:-1]) + " and " + parts[-1]
        if parts
        else "nothing"
    )
    place = PLACES.get(scene.scene, f"in a {scene.scene}")
    return f"{text} {place}" if rng.random() < 0.6 else text


def object_phrase(item: SceneObject, rng: np.random.Generator) -> str:
    """Name one object, sometimes with its colour or position."""
    draw = rng.random()
    if draw < 0.3:
        return article(f"{item.colour} {item.classname}")
    if draw < 0.45:
        where = "in the centre" if item.position == "centre" else f"at the {item.position}"
        return f"{article(item.classname)} {where}"
    return article(item.classname)
