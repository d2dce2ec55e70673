"""A linear site that also has annotations, captions and questions, with a secret wherever one fits.

The secret stands in folder and file names, captions, answers, category names, ids and the site's
own file. The job's `damage` ({site: kind}) spoils one of the files, so that the error of it could
carry the secret away.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from linear_site import LinearSite, write_site
from PIL import Image

from vltune.data.captions import load_captions
from vltune.data.multilabel import load_coco_instances
from vltune.data.vqa import load_vqa
from vltune.participant import Handshake, ShouldStop
from vltune.site_config import SiteConfig
from vltune.site_data import VqaFiles

SECRET = "Zelinski"
NUMBER = 471134
"""A patient's number, which the site took for the id of an image."""
PICTURE = f"{SECRET} Anna left lung"
"""A file name with spaces and without an ending."""


class PlantedSite(LinearSite):
    """Reads all of its files before it takes part."""

    def prepare(self, should_stop: ShouldStop) -> Handshake:
        folder = self.site.train.images
        load_coco_instances(folder / "coco", folder, [f"{SECRET}'s dog"], on_bad_image="stop")
        load_captions([folder / "captions.jsonl"])
        files = VqaFiles(folder / "questions", folder / "answers", folder, f"{SECRET} %d")
        load_vqa(files)
        return super().prepare(should_stop)


def build_participant(
    job: Mapping[str, Any], site: SiteConfig, site_name: str, state_dir: Path, threads: int
) -> PlantedSite:
    """Build the site; the executor finds this function by its dotted path."""
    return PlantedSite(job, site, site_name, state_dir)


def write_planted_site(folder: Path, name: str, seed: int, damage: str = "") -> None:
    """Write a site's files below a folder of a telling name."""
    write_site(folder, name, 17, seed)
    images = folder / "images"
    images.mkdir()
    for picture in (PICTURE, f"{SECRET} {NUMBER}"):
        Image.new("RGB", (5, 5), (seed, 2, 3)).save(images / picture, "PNG")
    first, second = {"id": NUMBER, "file_name": PICTURE}, {"id": 2, "file_name": PICTURE}
    category = {"id": 1, "name": f"{SECRET}'s dog"}
    coco: dict[str, Any] = {
        "images": [first, second] if damage == "coco names" else [first],
        "categories": [category],
        "annotations": [{"id": 3, "image_id": NUMBER, "category_id": 1}],
    }
    if damage == "coco categories":
        coco["categories"] = [{"id": NUMBER, "name": f"{SECRET} \\' \" cat"}]
    if damage == "coco ids":
        coco["images"] = [first, first]
    if damage == "coco record":
        coco["images"] = [f'{SECRET} said "no'] * 2
    if damage == "image":
        coco["images"][0]["file_name"] += " gone"
    row = {"image": PICTURE, "prompt": f"who is {SECRET}?", "answer": f"{SECRET}"}
    if damage == "captions":
        row[f"{SECRET} is a key"] = row.pop("answer")
    question = {"question_id": 5, "image_id": NUMBER, "question": f"where is {SECRET}?"}
    answer = {"question_id": 5, "image_id": NUMBER, "answers": [{"answer": SECRET}] * 10}
    if damage == "vqa":
        answer["image_id"] = NUMBER + 1
    (images / "coco").write_text(json.dumps(coco))
    (images / "captions.jsonl").write_text(json.dumps(row))
    (images / "questions").write_text(json.dumps({"questions": [question]}))
    (images / "answers").write_text(json.dumps({"annotations": [answer]}))
    if damage == "site file":
        text = (folder / "vltune_site.yaml").read_text()
        (folder / "vltune_site.yaml").write_text(f"{text}threads: {SECRET} {NUMBER}\n")
    if damage == "yaml":
        (folder / "vltune_site.yaml").write_text(f"train: [{SECRET} {NUMBER}: {{\n")


DAMAGES = (
    "", "coco names", "coco categories", "coco ids", "coco record", "image", "captions", "vqa",
    "site file", "yaml",
)  # fmt: skip
