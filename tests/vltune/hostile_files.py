"""Files of ours with the functions that read them, and ways to spoil them."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from PIL import Image
from safetensors.torch import save

from vltune.backbones.checkpoint import BackboneConfig, locate
from vltune.backbones.weights import read_state
from vltune.conditions import condition_cache_mapping, load_conditions
from vltune.config import load_config
from vltune.data.captions import load_captions
from vltune.data.drawings import load_drawings
from vltune.data.images import read_image
from vltune.data.multilabel import load_boxes, load_coco_instances
from vltune.data.preference import load_preference
from vltune.data.vqa import load_vqa
from vltune.feature_store import FeatureStore
from vltune.flare.executor import read_job
from vltune.flare.federation import FederationConfig
from vltune.flare.persistor import read_adapter, write_adapter
from vltune.flare.site_state import SiteState
from vltune.geneval_prompts import read_prompts
from vltune.site_config import read_site_config
from vltune.site_data import VqaFiles

CLASSES = ("dog", "cat")


class Reader(NamedTuple):
    """A file of ours: its name, valid content, and the function that reads it."""

    name: str
    content: bytes
    read: Callable[[Path], Any]


def png(width: int = 8, height: int = 8) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 3)).save(stream, "PNG")
    return stream.getvalue()


def lay_out(folder: Path) -> None:
    """Put the pictures that the files name into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("a.png", "b.png", "x_1.png"):
        (folder / name).write_bytes(png(8, 9))


def as_json(content: Any) -> bytes:
    return json.dumps(content).encode()


COCO = {
    "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
    "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 3, 4], "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 2, "bbox": [0, 0, 3, 4]},
    ],
}
VQA_QUESTIONS = {
    "data_subtype": "train2014",
    "questions": [{"question_id": 5, "image_id": 1, "question": "how many?"}],
}
VQA_ANSWERS = {
    "annotations": [
        {
            "question_id": 5,
            "image_id": 1,
            "multiple_choice_answer": "two",
            "answers": [{"answer": "two", "answer_id": n} for n in range(10)],
        }
    ]
}
SITE = {
    "site": "hospital-a",
    "train": {"images": "train", "annotations": "train.json"},
    "validation": {"images": "val", "annotations": "val.json"},
    "unlabelled": ["skis"],
    "rename": {"sofa": "couch"},
    "on_bad_image": "skip",
    "weights": {"ViT-B-16": "/models/x.safetensors"},
    "threads": 2,
}
SITE_VQA = {
    "data": "vqa",
    "train": {"questions": "q", "annotations": "a", "images": "i", "pattern": "x_%d.jpg"},
    "validation": {"share": 0.25},
    "max_skipped_share": 0.2,
}
FEDERATION = {"rounds": 3, "min_sites": 2, "round_timeout_seconds": 1e-3, "weight_by": "uniform"}
OPEN_CLIP = {
    "model_cfg": {"embed_dim": 8, "vision_cfg": {"width": 8}, "text_cfg": {"width": 8}},
    "preprocess_cfg": {"mean": [0, 0, 0], "std": [1, 1, 1]},
}
CONDITIONS = condition_cache_mapping(
    "two", CLASSES, [("colour", "its colour"), ("shape", "its form")], {"method": "x", "date": "y"}
)
TENSORS = {"bias": torch.ones(3), "weight": torch.ones(2, 3)}


def adapter_bytes(folder: Path) -> bytes:
    write_adapter(folder / "adapter", TENSORS, {"round": 3})
    return (folder / "adapter").read_bytes()


def read_coco_fully(path: Path) -> Any:
    samples = load_coco_instances(path, path.parent, CLASSES, on_bad_image="skip")
    return load_boxes(path, CLASSES, samples.image_ids)


def read_state_of_site(path: Path) -> Any:
    state = SiteState(path.parents[2], path.parents[1].name, path.parent.name)
    try:
        return state.before(7)
    finally:
        state.close()


def read_open_clip(path: Path) -> Any:
    (path.parent / "open_clip_model.safetensors").write_bytes(save(TENSORS))
    return locate(BackboneConfig("mine", str(path.parent)))


def read_feature_meta(path: Path) -> Any:
    store = FeatureStore(path.parents[1], {"kind": "x"}, (3,))
    store.folder.mkdir(exist_ok=True)
    (store.folder / "meta.json").write_bytes(path.read_bytes())
    try:
        return store.recover()
    except Exception as error:
        if str(store.folder) not in str(error):
            raise AssertionError(f"names another folder: {error}") from error
        raise type(error)(f"{path}: {error}") from error


def rows_of(*keys: str) -> bytes:
    rows = [{"image": "a.png", **{key: f"{key} {n}" for key in keys}} for n in range(2)]
    return b"\n".join(as_json(row) for row in rows)


PROMPT = {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a dog"}


def readers(folder: Path) -> dict[str, Reader]:
    vqa = folder / "vqa.json"
    vqa.write_bytes(as_json(VQA_ANSWERS))
    return {
        "site file": Reader("site.yaml", yaml.safe_dump(SITE).encode(), read_site_config),
        "site file of questions": Reader(
            "site.yaml", yaml.safe_dump(SITE_VQA).encode(), read_site_config
        ),
        "job": Reader(
            "job.yaml",
            yaml.safe_dump(FEDERATION).encode(),
            lambda path: load_config(FederationConfig, path),
        ),
        "exported job": Reader("job.json", as_json({"name": "x"}), read_job),
        "coco": Reader("coco.json", as_json(COCO), read_coco_fully),
        "captions": Reader(
            "rows.jsonl", rows_of("prompt", "answer"), lambda path: load_captions([path])
        ),
        "drawings": Reader("rows.jsonl", rows_of("caption"), lambda path: load_drawings([path])),
        "preference": Reader(
            "rows.jsonl",
            rows_of("question", "chosen", "rejected"),
            lambda path: load_preference([path]),
        ),
        "vqa": Reader(
            "questions.json",
            as_json(VQA_QUESTIONS),
            lambda path: load_vqa(VqaFiles(path, vqa, folder, "x_%d.png")),
        ),
        "conditions": Reader("conditions.json", as_json(CONDITIONS), load_conditions),
        "prompts": Reader("prompts.jsonl", as_json(PROMPT), read_prompts),
        "open_clip": Reader("open_clip_config.json", as_json(OPEN_CLIP), read_open_clip),
        "feature store": Reader("meta.json", as_json({"kind": "x"}), read_feature_meta),
        "weights": Reader("model.safetensors", save(TENSORS), read_state),
        "adapter": Reader("adapter.safetensors", adapter_bytes(folder), read_adapter),
        "personal state": Reader("personal_round3.safetensors", save(TENSORS), read_state_of_site),
        "image": Reader("x.png", png(), read_image),
    }


NAMES = (
    "site file", "site file of questions", "job", "exported job", "coco", "captions", "drawings",
    "preference", "vqa", "conditions", "prompts", "open_clip", "feature store", "weights",
    "adapter", "personal state", "image",
)  # fmt: skip


def outcome(reader: Reader, path: Path, content: bytes) -> str:
    """Read `content` as the file; the name of our error, or "" where it was read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    told: ValueError | None = None
    try:
        reader.read(path)
    except ValueError as error:
        told = error
    if told is None:
        return ""
    assert type(told).__module__.startswith("vltune."), repr(told)
    assert path.name in str(told) or "vqa.json" in str(told), told
    assert len(str(told)) < 5000 + 2 * len(content), len(str(told))
    return type(told).__name__
