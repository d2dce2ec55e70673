"""A site's own file: where it is looked for, what it may say, and whose it is."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from vltune.config import ConfigError
from vltune.site_config import (
    VARIABLE,
    AnswerSiteConfig,
    AnswerSplit,
    SiteConfig,
    Split,
    find_site_config,
    read_site_config,
    require_answers,
    require_multilabel,
)


def content(**more: Any) -> dict[str, Any]:
    return {
        "train": {"images": "train", "annotations": "train.json"},
        "validation": {"images": "/abs/val", "annotations": "~/val.json"},
        **more,
    }


def write(path: Path, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content(**more)))
    return path


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def test_paths_are_relative_to_the_files_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    path = write(tmp_path / "a" / "site.yaml", weights={"ViT-B-16": "w.safetensors"})
    monkeypatch.chdir(tmp_path)
    config = read_site_config(Path("a/site.yaml"))
    folder = path.parent
    assert config.train == Split(folder / "train", folder / "train.json")
    assert config.validation == Split(Path("/abs/val"), Path("/home/somebody/val.json"))
    assert config.weights == {"ViT-B-16": folder / "w.safetensors"}
    assert (config.cache_dir, config.state_dir) == (
        folder / "vltune_cache",
        folder / "vltune_state",
    )


def test_defaults_and_every_key(tmp_path: Path) -> None:
    config = read_site_config(write(tmp_path / "site.yaml"))
    assert (config.test, config.site, config.threads) == (None, None, None)
    assert (config.unlabelled, config.rename, config.weights) == ((), {}, {})
    assert config.on_bad_image == "stop"
    full = read_site_config(
        write(
            tmp_path / "site.yaml",
            site="hospital-a",
            test={"images": "test", "annotations": "test.json"},
            unlabelled=["skis"],
            rename={"sofa": "couch"},
            on_bad_image="skip",
            cache_dir="/cache",
            state_dir="state",
            threads=3,
        )
    )
    assert full.test == Split(tmp_path / "test", tmp_path / "test.json")
    assert (full.site, full.unlabelled, full.rename) == ("hospital-a", ("skis",), {"sofa": "couch"})
    assert (full.on_bad_image, full.threads) == ("skip", 3)
    assert (full.cache_dir, full.state_dir) == (Path("/cache"), tmp_path / "state")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"on_bad_image": "guess"}, "on_bad_image: expected one of stop, skip, got 'guess'"),
        ({"threads": 0}, "threads is 0; expected at least 1"),
        ({"threads": "two"}, "threads: expected int"),
        ({"site": "../b"}, r"site name '\.\./b'"),
        ({"trian": {}}, "unknown key trian; known keys: train, validation"),
        ({"train": {"images": "x"}}, "train: missing key annotations"),
        ({"train": "images"}, "train: expected a mapping"),
        ({"validation": None}, "validation: expected a mapping"),
        ({"unlabelled": "skis"}, "unlabelled: expected a list"),
        ({"unlabelled": [" skis"]}, "unlabelled: ' skis' is empty or has spaces"),
        ({"unlabelled": ["skis", "skis"]}, "unlabelled: a name is there twice"),
        ({"rename": {"sofa": ""}}, "rename: '' is empty"),
        ({"rename": ["sofa"]}, "rename: expected a mapping"),
        ({"weights": {"ViT-B-16": 3}}, r"weights\.ViT-B-16: expected"),
    ],
)
def test_wrong_values_name_file_and_key(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "site.yaml", **change)
    with pytest.raises(ConfigError, match=message) as caught:
        read_site_config(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "train: [", "train: {images: \x00}"])
def test_not_a_site_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"site\.yaml: "):
        read_site_config(path)
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        read_site_config(tmp_path / "none.yaml")


def test_found_in_the_local_folder(tmp_path: Path) -> None:
    write(tmp_path / "vltune_site.yaml", threads=5)
    assert find_site_config("site-1", tmp_path).threads == 5


def test_the_variable_comes_first_and_may_hold_the_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "local" / "vltune_site.yaml", threads=5)
    write(tmp_path / "site-1" / "own.yaml", threads=7, site="site-1")
    write(tmp_path / "site-2" / "own.yaml", threads=11)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "{site}" / "own.yaml"))
    assert find_site_config("site-1", tmp_path / "local").threads == 7
    assert find_site_config("site-2", None).threads == 11


def test_a_variable_that_leads_nowhere_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = write(tmp_path / "local" / "vltune_site.yaml")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "{site}.yaml"))
    with pytest.raises(ConfigError, match="not used while the variable is set") as caught:
        find_site_config("site-3", local.parent)
    for part in (str(tmp_path / "site-3.yaml"), str(local), VARIABLE, "site-3"):
        assert part in str(caught.value)


@pytest.mark.parametrize("has_local", [True, False])
def test_nothing_found_names_both_places(has_local: bool, tmp_path: Path) -> None:
    local = tmp_path if has_local else None
    with pytest.raises(
        ConfigError, match=rf"site-1: no vltune_site\.yaml.*{VARIABLE} \(not set\)"
    ) as e:
        find_site_config("site-1", local)
    expected = str(tmp_path / "vltune_site.yaml") if has_local else "there is none"
    assert expected in str(e.value)
    assert "docs/site_config.md" in str(e.value)


def test_another_sites_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "vltune_site.yaml", site="hospital-b")
    with pytest.raises(
        ConfigError, match="is the file of site 'hospital-b', but this site is 'h-a'"
    ):
        find_site_config("h-a", path.parent)


@pytest.mark.parametrize(
    "name", ["", "..", ".", "a/b", "../a", "a b", "a\\b", "-a", "x" * 65, "a\n"]
)
def test_a_site_name_is_one_safe_path_component(name: str, tmp_path: Path) -> None:
    write(tmp_path / "vltune_site.yaml")
    with pytest.raises(ConfigError, match="expected 1 to 64 letters"):
        find_site_config(name, tmp_path)


ANSWERS: dict[str, Any] = {
    "data": "preference",
    "train": {"files": ["a.jsonl", "/data/b.parquet"]},
    "validation": {"share": 0.2},
}


def write_answers(path: Path, **more: Any) -> Path:
    merged = ANSWERS | more
    path.write_text(yaml.safe_dump({key: value for key, value in merged.items() if value != {}}))
    return path


def test_a_site_with_answers_names_files_and_shares(tmp_path: Path) -> None:
    path = write_answers(
        tmp_path / "site.yaml", test={"files": ["~/t.jsonl"]}, weights={"m": "w"}, split_seed=3
    )
    config = read_site_config(path)
    assert isinstance(config, AnswerSiteConfig)
    assert (config.data, config.split_seed, config.max_skipped_share) == ("preference", 3, 0.1)
    assert config.train == AnswerSplit((tmp_path / "a.jsonl", Path("/data/b.parquet")))
    assert config.validation == AnswerSplit(share=0.2)
    assert config.test == AnswerSplit((Path.home() / "t.jsonl",))
    assert config.cache_dir == tmp_path / "vltune_cache"
    private = set(config.private_paths())
    assert private >= {tmp_path / "a.jsonl", tmp_path, Path("/data"), Path.home() / "t.jsonl"}
    assert private >= {tmp_path / "w", tmp_path / "vltune_cache", tmp_path / "vltune_state"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "vqb"}, "data: expected one of multilabel, preference, captions, vqa, .*'vqb'"),
        ({"data": ["captions"]}, "data: expected one of"),
        ({"data": "multilabel"}, "unknown key files"),
        ({"unlabelled": ["a"]}, "unknown key unlabelled"),
        ({"validation": {}}, "missing key validation"),
        ({"train": {"share": 0.5}}, "train: expected `files"),
        ({"train": {"images": "a", "annotations": "b"}}, "train: unknown key annotations, images"),
        ({"train": {"files": "a.jsonl"}}, "files: expected a list"),
        ({"train": {"files": ["a", "a"]}}, "files: a file is there twice"),
        ({"validation": {"files": ["a"], "share": 0.5}}, "expected either `files"),
        ({"validation": {"files": []}}, "expected either `files"),
        ({"validation": {"share": 1}}, "share is 1.0; expected more than 0 and less than 1"),
        ({"test": {"share": 0.8}}, "leave nothing to train on"),
        ({"max_skipped_share": 2}, "max_skipped_share is 2.0; expected 0 to 1"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_wrong_answer_sites(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_answers(tmp_path / "site.yaml", **change)
    with pytest.raises(ConfigError, match=message) as caught:
        read_site_config(path)
    assert str(path) in str(caught.value)


def test_a_job_refuses_data_of_another_kind(tmp_path: Path) -> None:
    labels = read_site_config(write(tmp_path / "labels.yaml", data="multilabel"))
    answers = read_site_config(write_answers(tmp_path / "answers.yaml", data="captions"))
    assert isinstance(require_multilabel(labels), SiteConfig)
    assert require_answers(answers) is answers
    with pytest.raises(ConfigError, match=r"needs `data: multilabel`.*says `data: captions`"):
        require_multilabel(answers)
    with pytest.raises(ConfigError, match=r"needs `data: preference`.*says `data: multilabel`"):
        require_answers(labels)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0", "cuda:12"])
def test_a_site_with_answers_says_where_its_model_runs(tmp_path: Path, device: str) -> None:
    config = read_site_config(write_answers(tmp_path / "site.yaml", device=device))
    assert require_answers(config).device == device
    assert require_answers(read_site_config(write_answers(tmp_path / "b.yaml"))).device == "cpu"


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "CUDA"])
def test_a_device_of_another_name_is_refused(tmp_path: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=r"expected cpu, cuda or cuda:N"):
        read_site_config(write_answers(tmp_path / "site.yaml", device=device))


def test_a_site_with_labels_has_no_device(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key device"):
        read_site_config(write(tmp_path / "site.yaml", device="cuda"))
