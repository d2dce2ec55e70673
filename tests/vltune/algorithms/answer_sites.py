"""Sites with a few coloured squares, questions about them and a house style each."""

import json
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "white": (240,) * 3}
STYLES = {"site-1": "{}", "site-2": "the square is {}", "site-3": "{} !"}


def write_site(root: Path, name: str, *, data: str = "preference", count: int = 12) -> Path:
    """Write images, train.jsonl, val.jsonl and vltune_site.yaml of one site; returns its folder."""
    folder = root / name
    folder.mkdir(parents=True)
    style = STYLES.get(name, "{}")
    for part, start in (("train", 0), ("val", 100)):
        lines = []
        for number in range(count):
            colours = list(COLOURS)
            colour, other = colours[number % 4], colours[(number + 1) % 4]
            value = tuple(max(0, v - number - start // 10) for v in COLOURS[colour])
            Image.new("RGB", (16, 16), value).save(folder / f"{part}-{number}.png")
            row: dict[str, Any] = {"image": f"{part}-{number}.png"}
            if data == "preference":
                row |= {"question": "Which colour?", "chosen": style.format(colour)}
                row |= {"rejected": style.format(other)}
            else:
                row |= {"prompt": "Which colour?", "answer": style.format(colour)}
            lines.append(json.dumps(row) + "\n")
        (folder / f"{part}.jsonl").write_text("".join(lines))
    site = {
        "data": data,
        "train": {"files": ["train.jsonl"]},
        "validation": {"files": ["val.jsonl"]},
    }
    (folder / "vltune_site.yaml").write_text(yaml.safe_dump(site))
    return folder


def make_job(weights: Path, **changes: Any) -> dict[str, Any]:
    """A FedVLM job on the tiny model."""
    job: dict[str, Any] = {
        "name": "fedvlm",
        "method": "FedVLM",
        "participant": "vltune.algorithms.fedvlm.build_participant",
        "seed": 7,
        "backbone": {"model": "florence2-tiny", "weights": str(weights)},
        "lora": {"rank": 2, "alpha": 4.0},
        "aggregation": {"mode": "plora"},
        "training": {"optimizer": "adamw", "learning_rate": 0.02, "batch_size": 4},
        "max_answer_tokens": 4,
        "federation": {"rounds": 2, "min_sites": 2, "metric": "accuracy", "tensorboard": False},
    }
    return job | changes
