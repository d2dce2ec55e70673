"""What a site says about itself: `vltune_site.yaml`, owned by the site, never part of a job.

The job says what to train; the site says where its data are. Example::

    site: hospital-a              # optional; must then be the site's FLARE name
    train:      {images: /data/train, annotations: /data/train.json}
    validation: {images: /data/val,   annotations: /data/val.json}
    test:       {images: /data/test,  annotations: /data/test.json}   # optional
    unlabelled: [skis]            # classes this site never labelled: unknown, not absent
    rename: {sofa: couch}         # the annotation file's name: the job's name
    on_bad_image: stop            # or skip: leave unreadable images out and count them
    weights: {ViT-B-16: /models/vit_b_16.safetensors}
    cache_dir: vltune_cache       # frozen features; personal data, keep it as safe as the images
    state_dir: vltune_state       # what must survive a restart
    threads: 4                    # default: cores / parallel sites

Relative paths are relative to the folder of the file, `~` is the user's home. A site whose data are
prompts and answers says so and names other files, see `AnswerSiteConfig`.
"""

import dataclasses
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vltune.config import ConfigError, from_mapping, read_mapping
from vltune.site_data import AnswerSplit as AnswerSplit
from vltune.site_data import Split as Split

FILE_NAME = "vltune_site.yaml"
VARIABLE = "VLTUNE_SITE_CONFIG"
SITE_PLACEHOLDER = "{site}"

_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?")
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


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

    train: Split | AnswerSplit
    validation: Split | AnswerSplit
    test: Split | AnswerSplit | None = None
    site: str | None = None
    on_bad_image: Literal["stop", "skip"] = "stop"
    weights: dict[str, Path] = field(default_factory=dict)
    cache_dir: Path = Path("vltune_cache")
    state_dir: Path = Path("vltune_state")
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.site is not None and not _SAFE_NAME.fullmatch(self.site):
            raise ValueError(_unsafe(self.site))
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads is {self.threads}; expected at least 1, or leave it out")

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
class AnswerSiteConfig(SiteSettings):
    """A site with images, prompts and answers; every path is absolute once the file was read.

    Example::

        data: preference              # image, question, chosen, rejected; or captions
        train:      {files: [train.jsonl]}
        validation: {share: 0.1}      # of the training images; or files
        max_skipped_share: 0.1        # of the images, with on_bad_image: skip
        device: cpu                   # or cuda, cuda:0

    Attributes:
        data: The kind of data.
        train: Records to train on, always files.
        validation: Records to measure on.
        test: Records measured at the end.
        split_seed: Of the division by `share`.
        max_skipped_share: Largest share of a part's images that `skip` may leave out.
        lora_rank: A lower rank than the job's, for a small machine; only with an aggregation that
            takes sites of different ranks (svd, stack, hetlora).
        device: Where the model runs: cpu, cuda or cuda:N.
    """

    data: Literal["preference", "captions"]
    train: AnswerSplit
    validation: AnswerSplit
    test: AnswerSplit | None = None
    split_seed: int = 0
    max_skipped_share: float = 0.1
    lora_rank: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _DEVICE.fullmatch(self.device):
            raise ValueError(f"device is {self.device!r}; expected cpu, cuda or cuda:N")
        if not self.train.files:
            raise ValueError("train: expected `files: [...]`; only the other parts can be shares")
        parts = [self.validation] if self.test is None else [self.validation, self.test]
        if sum(part.share or 0.0 for part in parts) >= 1:
            raise ValueError("the shares of validation and test leave nothing to train on")
        if self.lora_rank is not None and self.lora_rank < 1:
            raise ValueError(f"lora_rank is {self.lora_rank}; expected at least 1, or leave it out")
        if not 0 <= self.max_skipped_share <= 1:
            raise ValueError(f"max_skipped_share is {self.max_skipped_share}; expected 0 to 1")


AnySiteConfig = SiteConfig | AnswerSiteConfig


def check_site_name(name: str) -> None:
    """Refuse a site name that could be more than one component of a path.

    Raises:
        ConfigError: The name is empty, too long, or has characters beyond letters, digits, `._-`.
    """
    if not _SAFE_NAME.fullmatch(name):
        raise ConfigError(_unsafe(name))


def read_site_config(path: Path) -> AnySiteConfig:
    """Read a site's file and make its paths absolute.

    Raises:
        ConfigError: Missing file, unknown or missing key, wrong type or value.
    """
    path = path.expanduser().absolute()
    mapping = read_mapping(path)
    kind = mapping.get("data", "multilabel")
    kinds: dict[str, type[AnySiteConfig]] = {
        "multilabel": SiteConfig,
        "preference": AnswerSiteConfig,
        "captions": AnswerSiteConfig,
    }
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(f"{path}: data: expected one of {', '.join(kinds)}, got {kind!r}")
    config: AnySiteConfig = from_mapping(kinds[kind], mapping, str(path))
    resolved: AnySiteConfig = _absolute(config, path.parent)
    return resolved


def _absolute(config: Any, folder: Path) -> Any:
    """Join relative paths, in nested dataclasses too, to `folder`."""
    if isinstance(config, Path):
        return folder / config.expanduser()
    if isinstance(config, tuple):
        return tuple(_absolute(item, folder) for item in config)
    if isinstance(config, dict):
        return {key: _absolute(item, folder) for key, item in config.items()}
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        values = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
        return dataclasses.replace(
            config, **{name: _absolute(value, folder) for name, value in values.items()}
        )
    return config


def require_multilabel(config: AnySiteConfig) -> SiteConfig:
    """Return the configuration of a site with labels.

    Raises:
        ConfigError: The site's data are of another kind.
    """
    if not isinstance(config, SiteConfig):
        raise ConfigError(
            f"this job needs `data: multilabel`, but this site's file says `data: {config.data}`. "
            "Give the site the file of its labelled images (see docs/site_config.md)."
        )
    return config


def require_answers(config: AnySiteConfig) -> AnswerSiteConfig:
    """Return the configuration of a site with prompts and answers.

    Raises:
        ConfigError: The site's data are of another kind.
    """
    if not isinstance(config, AnswerSiteConfig):
        raise ConfigError(
            "this job needs `data: preference` or `data: captions`, but this site's file says "
            f"`data: {config.data}`. Give the site the file of its answers (see "
            "docs/site_config.md)."
        )
    return config


def find_site_config(site_name: str, local_dir: Path | None) -> AnySiteConfig:
    """Find and read the file of the site that runs here.

    Looked up in VLTUNE_SITE_CONFIG, where `{site}` stands for the site's name (several simulated
    sites share one environment), then in the FLARE site's `local` folder. A variable that leads
    nowhere is an error: falling through to other data would go unnoticed.

    Args:
        site_name: FLARE's name of this site.
        local_dir: The FLARE site's `local` folder, None where there is none.

    Raises:
        ConfigError: Unsafe site name, no file at either place, a wrong file, or another site's.
    """
    check_site_name(site_name)
    variable = os.environ.get(VARIABLE, "").strip()
    local = None if local_dir is None else local_dir / FILE_NAME
    if variable:
        path = Path(variable.replace(SITE_PLACEHOLDER, site_name)).expanduser()
    elif local is not None:
        path = local
    else:
        raise ConfigError(_not_found(site_name, variable, None, local))
    if not os.path.isfile(path):
        raise ConfigError(_not_found(site_name, variable, path, local))
    config = read_site_config(path)
    if config.site is not None and config.site != site_name:
        raise ConfigError(
            f"{path}: is the file of site {config.site!r}, but this site is {site_name!r}. "
            f"Point {VARIABLE} to the right file, or correct `site:`."
        )
    return config


def _unsafe(name: str) -> str:
    return (
        f"site name {name!r}: expected 1 to 64 letters, digits, '.', '_' or '-', starting with a "
        "letter or digit. Rename the site in FLARE's project.yml."
    )


def _not_found(site_name: str, variable: str, tried: Path | None, local: Path | None) -> str:
    looked = f"{VARIABLE}={variable} ({tried})" if variable else f"{VARIABLE} (not set)"
    unused = ", not used while the variable is set" if variable else ""
    place = f"{local}{unused}" if local is not None else "the site's local folder (there is none)"
    return (
        f"site {site_name}: no {FILE_NAME}. Looked at {looked} and at {place}. Write one (see "
        f"docs/site_config.md) and put it there, or set {VARIABLE} to its path; {SITE_PLACEHOLDER} "
        "in the path stands for the site's name."
    )
