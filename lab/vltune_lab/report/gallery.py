"""Test images: region maps of their labels, scores, and the weights of the conditions."""

from collections.abc import Sequence

from vltune_lab.report import formats, maps
from vltune_lab.report.charts import Bar, bar_row
from vltune_lab.report.example_file import Example, Examples, Prediction, RegionMap, decode_png
from vltune_lab.report.markup import Markup, join, section, table, tag

TRUTH = {1: "present", 0: "absent", -1: "unknown"}


def gallery(examples: Examples | None) -> Markup | None:
    """Some images of the global test set; None where the run wrote none."""
    if examples is None or not examples.examples:
        return None
    note = (
        "Orange: the patches from which optimal transport brings a label its mass, averaged over "
        "the conditions by the gate. One square is one patch; full colour is the strongest, "
        "none is an even share or less. The peak says how many times an even share it holds."
    )
    has_maps = any(example.maps for example in examples.examples)
    text = note if has_maps else "This run pools patches without transport: no region maps."
    strongest = max(max(example.gate, default=0.0) for example in examples.examples)
    cards = [_card(item, examples.conditions, strongest) for item in examples.examples]
    return section(
        "What it sees in test images",
        tag("p", text, class_="quiet"),
        tag("div", cards, class_="cards"),
    )


def _card(example: Example, conditions: Sequence[str], strongest: float) -> Markup:
    image = decode_png(example.image_png)
    labels = ", ".join(item.classname for item in example.predictions if item.label == 1)
    whole = maps.picture_tag(maps.enlarged(image), f"Test image with {labels}")
    pictures = [tag("figure", whole, tag("figcaption", "the image"))]
    pictures += [_map(image, region) for region in example.maps]
    return tag(
        "article",
        tag("h3", labels),
        tag("div", pictures, class_="pictures"),
        tag(
            "div",
            tag("div", tag("h4", "Scores"), _scores(example.predictions)),
            tag(
                "div",
                tag("h4", "Weights of the conditions, %"),
                _gate(example.gate, conditions, strongest),
            ),
            class_="charts",
        ),
        class_="card",
    )


def _map(image: bytes, region: RegionMap) -> Markup:
    peak = maps.peak_ratio(region.mass)
    picture = maps.picture_tag(
        maps.overlay(image, region.mass), f"Region map of {region.classname}"
    )
    caption = tag(
        "figcaption",
        region.classname,
        tag("br"),
        tag("span", f"peak {peak:.1f}\N{MULTIPLICATION SIGN}", class_="quiet"),
    )
    return tag("figure", picture, caption)


def _scores(predictions: Sequence[Prediction]) -> Markup:
    rows = [
        [
            tag("strong", item.classname) if item.label == 1 else item.classname,
            TRUTH.get(item.label, str(item.label)),
            formats.percent(item.score),
        ]
        for item in predictions
    ]
    return table(["class", "truth", "score %"], rows, text_columns=2)


def _gate(gate: Sequence[float], conditions: Sequence[str], strongest: float) -> Markup:
    rows = [
        bar_row(
            name,
            [Bar(weight / strongest if strongest else 0.0, "federated")],
            [formats.percent(weight)],
        )
        for name, weight in zip(conditions, gate, strict=True)
    ]
    even = f"{100 / max(1, len(conditions)):.0f} % each would be even."
    return join(tag("div", rows, class_="rows phases"), tag("p", even, class_="quiet"))
