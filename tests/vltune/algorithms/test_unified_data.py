"""Sites with questions only, captioned images only, or both."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.append(str(Path(__file__).parents[1] / "data"))

from answer_files import write_lines
from vqa_files import PATTERN, write_vqa

from vltune.algorithms.answer_data import load_answer_data
from vltune.algorithms.unified_data import UnifiedData, load_unified_data
from vltune.config import ConfigError
from vltune.data.rows import RecordError
from vltune.geneval_prompts import PromptError
from vltune.site_config import read_site_config, require_answers, require_unified

VQA = {"questions": "questions.json", "annotations": "annotations.json", "images": "images"}
CAPTIONS = {"files": ["captions.jsonl"]}
PROMPT = {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a dog"}


def write_site(folder: Path, images: range = range(20), **content: Any) -> Path:
    """Two questions and a caption for each image, prompts, and the site's file."""
    write_vqa(folder, images)
    rows = [
        {"image": f"images/{PATTERN % number}", "caption": f"{number} dogs"} for number in images
    ]
    write_lines(folder / "captions.jsonl", rows)
    write_lines(folder / "prompts.jsonl", [PROMPT])
    path = folder / "vltune_site.yaml"
    path.write_text(yaml.safe_dump({"data": "unified", "validation": {"share": 0.3}, **content}))
    return path


def read(path: Path) -> UnifiedData:
    return load_unified_data(require_unified(read_site_config(path)))


def test_both_tasks_and_shares_that_agree(tmp_path: Path) -> None:
    """An image is on one side with its questions and its caption."""
    data = read(write_site(tmp_path, train={"vqa": VQA, "captions": CAPTIONS}))
    train, held = data.train, data.validation.samples
    for part in (train, held):
        assert part.understanding is not None
        assert part.drawing is not None
        assert set(part.understanding.digests) == set(part.drawing.digests) == part.digests
        assert len(part.understanding.records) == 2 * len(part.drawing.records)
    assert len(train.digests) + len(held.digests) == 20
    assert not train.digests & held.digests
    assert (data.validation.prompts, data.test) == ((), None)


def test_one_task_alone(tmp_path: Path) -> None:
    only_vqa = read(write_site(tmp_path, train={"vqa": VQA}))
    assert only_vqa.train.drawing is None
    assert only_vqa.validation.samples.drawing is None
    only_captions = read(write_site(tmp_path, train={"captions": CAPTIONS}))
    assert only_captions.train.understanding is None
    assert only_captions.train.drawing is not None


def test_a_part_may_have_prompts_alone_or_beside_a_share(tmp_path: Path) -> None:
    train = {"vqa": VQA, "captions": CAPTIONS}
    shared = {"share": 0.3, "prompts": "prompts.jsonl"}
    data = read(write_site(tmp_path, train=train, validation=shared))
    assert [prompt.prompt for prompt in data.validation.prompts] == ["a dog"]
    assert data.validation.samples.digests
    data = read(write_site(tmp_path, train=train, test={"prompts": "prompts.jsonl"}))
    assert data.test is not None
    assert not data.test.samples.digests
    assert len(data.test.prompts) == 1


def test_an_image_in_two_parts_is_refused_across_tasks(tmp_path: Path) -> None:
    """Trained on its question, measured on its caption: that is one image too many."""
    path = write_site(tmp_path, train={"vqa": VQA}, validation={"captions": CAPTIONS})
    with pytest.raises(RecordError, match="20 images are in both 'train' and 'validation'"):
        read(path)


def test_the_sites_paths_are_private(tmp_path: Path) -> None:
    train = {"vqa": VQA, "captions": CAPTIONS}
    path = write_site(tmp_path, train=train, test={"prompts": "prompts.jsonl"})
    private = set(read_site_config(path).private_paths())
    for name in ("questions.json", "annotations.json", "images", "captions.jsonl", "prompts.jsonl"):
        assert tmp_path / name in private


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": {"share": 0.5}}, "train: expected `files` of its own"),
        ({"train": {}}, "expected `vqa`, `captions`, `prompts` or `share"),
        ({"train": {"vqa": VQA, "prompts": "p.jsonl"}}, "train: prompts are drawn to measure"),
        ({"train": {"vqa": VQA, "share": 0.5}}, "expected either files"),
        ({"train": {"vqa": {"images": "images"}}}, "missing key questions, annotations"),
        ({"train": {"captions": {"files": []}}}, "files is empty"),
        ({"train": {"captions": {"files": ["a", "a"]}}}, "a file is there twice"),
        ({"train": {"vqa": VQA | {"pattern": "%s"}}}, "pattern is '%s'"),
        ({"train": {"vqa": VQA}, "unlabelled": ["a"]}, "unknown key unlabelled"),
    ],
)
def test_wrong_unified_sites(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read(write_site(tmp_path, **content))


def test_wrong_prompts_stop_the_site(tmp_path: Path) -> None:
    path = write_site(tmp_path, train={"vqa": VQA}, validation={"prompts": "prompts.jsonl"})
    (tmp_path / "prompts.jsonl").write_text("{}\n")
    with pytest.raises(PromptError, match="line 1: key 'include' is missing"):
        read(path)


def test_vqa_files_alone_serve_jobs_that_need_answers(tmp_path: Path) -> None:
    path = write_site(tmp_path, data="vqa", train=VQA, test={"share": 0.2})
    data = load_answer_data(require_answers(read_site_config(path)))
    assert data.test is not None
    parts = (data.train, data.validation, data.test)
    assert sum(len(part.images) for part in parts) == 20
    assert all(len(record.answers) == 10 for part in parts for record in part.records)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": {"share": 0.5}}, "train: expected `files` of its own"),
        ({"train": {"questions": "q.json"}}, "expected `questions`, `annotations` and `images`"),
        ({"train": VQA | {"share": 0.5}}, "expected either `questions, annotations, images`"),
        ({"train": VQA, "validation": {"share": 1.5}}, "share is 1.5"),
        ({"train": VQA, "validation": {"files": ["a"]}}, "unknown key files"),
    ],
)
def test_wrong_vqa_sites(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read_site_config(write_site(tmp_path, data="vqa", **content))


def test_a_job_refuses_a_site_of_another_kind(tmp_path: Path) -> None:
    vqa = read_site_config(write_site(tmp_path, data="vqa", train=VQA))
    with pytest.raises(ConfigError, match=r"needs `data: unified`.*says `data: vqa`"):
        require_unified(vqa)
    unified = read_site_config(write_site(tmp_path, train={"vqa": VQA}))
    with pytest.raises(ConfigError, match=r"`data: vqa`, but.*says `data: unified`"):
        require_answers(unified)
