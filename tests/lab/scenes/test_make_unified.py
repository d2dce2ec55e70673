"""Unified worlds, read back by the production readers."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from vltune.algorithms.unified_data import UnifiedData, load_unified_data
from vltune.data.drawings import load_drawings
from vltune.data.vqa import load_vqa
from vltune.files import OutputError
from vltune.geneval_prompts import TAGS, read_prompts
from vltune.site_config import read_site_config, require_unified
from vltune.site_data import VqaFiles
from vltune_lab.scenes.geneval_prompts import FIRST_CLASSES
from vltune_lab.scenes.make_unified import make_unified_world
from vltune_lab.scenes.unified_world import Pool, UnifiedWorld

pytestmark = pytest.mark.slow
WORLD = UnifiedWorld(
    seed=11, names=("St_Mary", "b.2", "c-3"), tasks=("both", "vqa", "captions"),
    pool=Pool(30, 16, 14), image_size=48, prompts=2, global_test=6, global_prompts=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unified")
    assert make_unified_world(WORLD, folder).num_images == 2 * (30 + 16 + 14 + 6)
    return folder


def read(folder: Path) -> UnifiedData:
    return load_unified_data(require_unified(read_site_config(folder / "vltune_site.yaml")))


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_same_seed_same_bytes_and_another_world_is_refused(made: Path, tmp_path: Path) -> None:
    make_unified_world(WORLD, tmp_path / "again")
    assert digest(tmp_path / "again") == digest(made)
    assert make_unified_world(WORLD, made).was_there
    with pytest.raises(OutputError, match="another world"):
        make_unified_world(replace(WORLD, seed=12), made)


def test_each_site_has_what_its_task_says(made: Path) -> None:
    both, answers, draws = (read(made / name) for name in WORLD.names)
    for data, has_vqa, has_captions in ((both, 1, 1), (answers, 1, 0), (draws, 0, 1)):
        assert data.test is not None
        for part in (data.train, data.validation.samples, data.test.samples):
            assert (part.understanding is not None) == bool(has_vqa)
            assert (part.drawing is not None) == bool(has_captions)
        assert len(data.validation.prompts) == 2 * len(TAGS) * has_captions


def test_the_pool_is_dealt_out_whole(made: Path) -> None:
    """Questions of all sites together are those that one site alone would have."""
    sites = [read(made / name) for name in WORLD.names]
    drawings = [site.train.drawing for site in sites if site.train.drawing]
    assert sum(len(part.records) for part in drawings) == 30
    asked = [json.loads((made / name / "train/questions.json").read_text())
             for name in WORLD.names[:2]]  # fmt: skip
    numbers = [entry["question_id"] for content in asked for entry in content["questions"]]
    assert len(set(numbers)) == len(numbers)
    assert {number // 100 for number in numbers} == set(range(30))


def test_one_site_holds_the_same_pool(made: Path, tmp_path: Path) -> None:
    make_unified_world(replace(WORLD, names=("all",), tasks=("both",)), tmp_path / "one")
    alone = json.loads((tmp_path / "one/all/train/questions.json").read_text())["questions"]
    dealt = [
        entry
        for name in WORLD.names[:2]
        for entry in json.loads((made / name / "train/questions.json").read_text())["questions"]
    ]
    assert sorted(alone, key=lambda e: e["question_id"]) == sorted(
        dealt, key=lambda e: e["question_id"]
    )
    assert digest(tmp_path / "one/global") == digest(made / "global")


def test_the_global_test_set_has_all(made: Path) -> None:
    folder = made / "global" / "test"
    files = VqaFiles(folder / "questions.json", folder / "annotations.json", folder / "images",
                     "%012d.jpg")  # fmt: skip
    questions, drawings = load_vqa(files), load_drawings([folder / "captions.jsonl"])
    assert (len(questions.images), len(drawings.records)) == (6, 6)
    assert {len(record.answers) for record in questions.records} == {10}
    prompts = read_prompts(folder / "prompts.jsonl")
    assert Counter(prompt.tag for prompt in prompts) == dict.fromkeys(TAGS, 3)
    assert all(prompt.classnames <= set(FIRST_CLASSES) for prompt in prompts)
    credits_ = json.loads((made / "world.json").read_text())["provenance"]
    assert set(credits_["drawings"]) == set(WORLD.styles)


def test_own_styles_and_all_classes(tmp_path: Path) -> None:
    world = replace(WORLD, partition="site", tasks=("both",), vocabulary="all")
    make_unified_world(world, tmp_path / "own")
    for name in world.names:
        data = read(tmp_path / "own" / name)
        assert data.train.drawing is not None
        assert len(data.train.drawing.records) == 10
