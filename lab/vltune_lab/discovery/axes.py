"""Seed list of axes along which images differ, each with values to try on a class list.

Written by hand for everyday photographs, before any was scored and without regard to one class
list. A list from another field (X-rays, a production line) wants its own axes or `--llm openai`.
"""

from dataclasses import dataclass

NEUTRAL = "This is a photo. In the photo there is a"


@dataclass(frozen=True)
class Axis:
    """One way in which images differ.

    Attributes:
        name: The condition that it becomes.
        gloss: One line for people.
        template: A text with `{value}` that a class name goes on.
        values: V values, at least 2.
        is_control: Nonsense: no class can depend on it, so its score is what chance gives.
    """

    name: str
    gloss: str
    template: str
    values: tuple[str, ...]
    is_control: bool = False

    def prefixes(self) -> list[str]:
        """Return the template filled with each value."""
        return [self.template.format(value=value) for value in self.values]


AXES = (
    Axis(
        "scene type",
        "The kind of place that is shown: street, kitchen, field, beach.",
        "This is a photo of a {value}. In the photo there is a",
        (
            *("city street", "kitchen", "living room", "bedroom", "bathroom", "office"),
            *("restaurant", "park", "farm", "forest", "beach", "mountain", "airport"),
            *("train station", "harbour"),
        ),
    ),
    Axis(
        "background",
        "What lies behind the objects: sky, wall, grass, water.",
        "This is a photo with {value} in the background. In the photo there is a",
        ("sky", "grass", "water", "sand", "snow", "trees", "buildings", "a wall", "a table"),
    ),
    Axis(
        "lighting",
        "Where the light comes from and how strong it is.",
        "This is a photo taken in {value}. In the photo there is a",
        ("bright sunlight", "lamp light", "candle light", "darkness", "street light"),
    ),
    Axis(
        "colour",
        "The hues of the objects and of what surrounds them.",
        "This is a photo of something {value}. In the photo there is a",
        ("red", "orange", "yellow", "green", "blue", "brown", "black", "white", "grey"),
    ),
    Axis(
        "pose",
        "How an object is turned and what posture it takes.",
        "This is a photo of something that is {value}. In the photo there is a",
        ("standing", "lying", "sitting", "running", "flying", "hanging", "being held"),
    ),
    Axis(
        "spatial layout",
        "Where objects stand to each other: apart, overlapping, near, far.",
        "This is a photo of things {value}. In the photo there is a",
        ("in a row", "in a pile", "far apart", "side by side", "on top of each other"),
    ),
    Axis(
        "material",
        "What the objects are made of.",
        "This is a photo of something made of {value}. In the photo there is a",
        ("metal", "wood", "glass", "cloth", "plastic", "paper", "fur", "leaves"),
    ),
    Axis(
        "object scale",
        "How large the objects are.",
        "This is a photo of something {value}. In the photo there is a",
        ("tiny", "small", "as large as a person", "large", "huge"),
    ),
    Axis(
        "weather",
        "Sun, rain, fog or snow.",
        "This is a photo taken in {value}. In the photo there is a",
        ("sunny weather", "rain", "fog", "snowfall", "a storm"),
    ),
    Axis(
        "viewpoint",
        "From where the picture is taken.",
        "This is a photo taken from {value}. In the photo there is a",
        ("above", "below", "very near", "far away", "a moving car"),
    ),
)

CONTROLS = (
    Axis(
        "control: number of bananas",
        "Nonsense.",
        "Somewhere else there are {value}. In the photo there is a",
        ("two bananas", "three bananas", "four bananas", "many bananas"),
        is_control=True,
    ),
    Axis(
        "control: day of the week",
        "Nonsense.",
        "This is a photo taken on a {value}. In the photo there is a",
        ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
        is_control=True,
    ),
    Axis(
        "control: photographer",
        "Nonsense.",
        "This is a photo taken by {value}. In the photo there is a",
        ("Anna", "Thomas", "Maria", "Peter", "Susan", "Daniel"),
        is_control=True,
    ),
)
