"""The kinds of site: what each one's `vltune_site.yaml` may say. Read by `vltune.site_config`."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from vltune.site_data import AnswerSplit, Split, UnifiedSplit, VqaSplit

_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?")
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class HasWeights(Protocol):
    """A dataclass that says where weights are."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def weights(self) -> str:
        """Folder, file or hub id."""


WeightsT = TypeVar("WeightsT", bound=HasWeights)
AnySplit = Split | AnswerSplit | VqaSplit | UnifiedSplit


@dataclass(frozen=True, kw_only=True)
class SiteSettings:
    """What every site's file may say, whatever its data are.

    Attributes:
        train: To train on.
        validation: The received global model is measured on it each round.
        test: Measured once at the end, if the site has any.
        site: The site's FLARE name, checked when given.
        on_bad_image: What a missing or unreadable image does.
        weights: Backbone model name -> local weights, in place of the job's.
        cache_dir: Frozen features.
        state_dir: State that must survive a restart; sites that share a file share this folder, so
            each keeps its own under its name.
        threads: CPU threads, or None for cores / parallel sites.
    """

    train: AnySplit
    validation: AnySplit
    test: AnySplit | None = None
    site: str | None = None
    on_bad_image: Literal["stop", "skip"] = "stop"
    weights: dict[str, Path] = field(default_factory=dict)
    cache_dir: Path = Path("vltune_cache")
    state_dir: Path = Path("vltune_state")
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.site is not None and not is_safe_name(self.site):
            raise ValueError(unsafe_name(self.site))
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads is {self.threads}; expected at least 1, or leave it out")

    def with_own_weights(self, config: WeightsT, name: str) -> WeightsT:
        """A model's configuration with this site's own copy of `name`, where the site has one."""
        own = self.weights.get(name)
        return config if own is None else replace(config, weights=str(own))

    def private_paths(self) -> list[Path]:
        """Paths that no message to the server may show."""
        parts = [part for part in (self.train, self.validation, self.test) if part is not None]
        of_parts = [path for part in parts for path in part.paths()]
        return [*of_parts, self.cache_dir, self.state_dir, *self.weights.values()]


@dataclass(frozen=True, kw_only=True)
class SiteConfig(SiteSettings):
    """A site with images and labels; every path is absolute once the file was read.

    Attributes:
        train: Images to train on.
        validation: Images to measure on.
        test: Images measured at the end.
        unlabelled: Classes that were never labelled here.
        rename: Category name of the annotation files -> class name of the jobs.
        data: The kind of data, which decides what the other keys are.
    """

    train: Split
    validation: Split
    test: Split | None = None
    unlabelled: tuple[str, ...] = ()
    rename: dict[str, str] = field(default_factory=dict)
    data: Literal["multilabel"] = "multilabel"

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, names in (
            ("unlabelled", self.unlabelled),
            ("rename", (*self.rename, *self.rename.values())),
        ):
            wrong = [name for name in names if not name or name != name.strip()]
            if wrong:
                raise ValueError(f"{key}: {wrong[0]!r} is empty or has spaces around it")
        if len(set(self.unlabelled)) != len(self.unlabelled):
            raise ValueError(f"unlabelled: a name is there twice in {', '.join(self.unlabelled)}")


@dataclass(frozen=True, kw_only=True)
class AnswerSettings(SiteSettings):
    """What every site with prompts and answers may say.

    Attributes:
        train: Always files.
        validation: To measure on: files, or a share of the training images.
        test: Measured at the end.
        split_seed: Of the division by `share`.
        max_skipped_share: Largest share of a part's images that `skip` may leave out.
        lora_rank: A lower rank than the job's, for a small machine; only with an aggregation that
            takes sites of different ranks (svd, stack, hetlora).
        device: Where the model runs: cpu, cuda or cuda:N.
    """

    train: AnswerSplit | VqaSplit | UnifiedSplit
    validation: AnswerSplit | VqaSplit | UnifiedSplit
    test: AnswerSplit | VqaSplit | UnifiedSplit | None = None
    split_seed: int = 0
    max_skipped_share: float = 0.1
    lora_rank: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _DEVICE.fullmatch(self.device):
            raise ValueError(f"device is {self.device!r}; expected cpu, cuda or cuda:N")
        if not self.train.has_files:
            raise ValueError("train: expected `files` of its own; only other parts can be shares")
        parts = [self.validation] if self.test is None else [self.validation, self.test]
        if sum(part.share or 0.0 for part in parts) >= 1:
            raise ValueError("the shares of validation and test leave nothing to train on")
        if self.lora_rank is not None and self.lora_rank < 1:
            raise ValueError(f"lora_rank is {self.lora_rank}; expected at least 1, or leave it out")
        if not 0 <= self.max_skipped_share <= 1:
            raise ValueError(f"max_skipped_share is {self.max_skipped_share}; expected 0 to 1")


@dataclass(frozen=True, kw_only=True)
class AnswerSiteConfig(AnswerSettings):
    """A site with images, prompts and answers in rows; every path is absolute once it was read.

    Example::

        data: preference              # image, question, chosen, rejected; or captions
        train:      {files: [train.jsonl]}
        validation: {share: 0.1}      # of the training images; or files
        max_skipped_share: 0.1        # of the images, with on_bad_image: skip
        device: cpu                   # or cuda, cuda:0

    Attributes:
        data: The kind of data.
        train: Records to train on.
        validation: Records to measure on.
        test: Records measured at the end.
    """

    data: Literal["preference", "captions"]
    train: AnswerSplit
    validation: AnswerSplit
    test: AnswerSplit | None = None


@dataclass(frozen=True, kw_only=True)
class VqaSiteConfig(AnswerSettings):
    """A site with questions in the files of VQA v2.

    Example::

        data: vqa
        train:      {questions: q.json, annotations: a.json, images: train2014}
        validation: {share: 0.1}

    Attributes:
        data: The kind of data.
        train: Questions to train on.
        validation: Questions to measure on.
        test: Questions measured at the end.
    """

    data: Literal["vqa"]
    train: VqaSplit
    validation: VqaSplit
    test: VqaSplit | None = None


@dataclass(frozen=True, kw_only=True)
class UnifiedSiteConfig(AnswerSettings):
    """A site with questions, with captioned images to learn drawing from, or with both.

    Example::

        data: unified
        train:
          vqa: {questions: q.json, annotations: a.json, images: train2014}
          captions: {files: [captions.jsonl]}
        validation: {share: 0.1, prompts: prompts.jsonl}

    Attributes:
        data: The kind of data.
        train: To train on.
        validation: To measure on; `prompts` are drawn and judged.
        test: Measured at the end.
    """

    data: Literal["unified"]
    train: UnifiedSplit
    validation: UnifiedSplit
    test: UnifiedSplit | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train.prompts is not None:
            raise ValueError("train: prompts are drawn to measure; name them under validation")

    @property
    def prompt_files(self) -> list[Path]:
        """Files of prompts that this site has pictures drawn and judged for."""
        parts = [part for part in (self.validation, self.test) if part is not None]
        return [part.prompts for part in parts if part.prompts is not None]


QuestionSiteConfig = AnswerSiteConfig | VqaSiteConfig
AnySiteConfig = SiteConfig | AnswerSiteConfig | VqaSiteConfig | UnifiedSiteConfig


def is_safe_name(name: str) -> bool:
    """Whether a site's name is one component of a path."""
    return _SAFE_NAME.fullmatch(name) is not None


def unsafe_name(name: str) -> str:
    """What is wrong with a name that is not safe."""
    return (
        f"site name {name!r}: expected 1 to 64 letters, digits, '.', '_' or '-', starting with a "
        "letter or digit. Rename the site in FLARE's project.yml."
    )
