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

Relative paths are relative to the folder of the file, `~` is the user's home.
"""

import dataclasses
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vltune.config import ConfigError, load_config

FILE_NAME = "vltune_site.yaml"
VARIABLE = "VLTUNE_SITE_CONFIG"
SITE_PLACEHOLDER = "{site}"

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Split:
    """One part of a site's data.

    Attributes:
        images: Folder of the images.
        annotations: COCO instances JSON.
    """

    images: Path
    annotations: Path


@dataclass(frozen=True)
class SiteConfig:
    """A site's own file; every path is absolute once it was read.

    Attributes:
        train: Images to train on.
        validation: Images on which the received global model is measured each round.
        test: Images measured once at the end, if the site has any.
        site: The site's FLARE name, checked when given.
        unlabelled: Classes that were never labelled here.
        rename: Category name of the annotation files -> class name of the jobs.
        on_bad_image: What a missing or unreadable image does.
        weights: Backbone model name -> local weights, in place of the job's.
        cache_dir: Frozen features.
        state_dir: State that must survive a restart; sites that share a file share this folder, so
            each keeps its own under its name.
        threads: CPU threads, or None for cores / parallel sites.
    """

    train: Split
    validation: Split
    test: Split | None = None
    site: str | None = None
    unlabelled: tuple[str, ...] = ()
    rename: dict[str, str] = field(default_factory=dict)
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
        for key, names in (
            ("unlabelled", self.unlabelled),
            ("rename", (*self.rename, *self.rename.values())),
        ):
            wrong = [name for name in names if not name or name != name.strip()]
            if wrong:
                raise ValueError(f"{key}: {wrong[0]!r} is empty or has spaces around it")
        if len(set(self.unlabelled)) != len(self.unlabelled):
            raise ValueError(f"unlabelled: a name is there twice in {', '.join(self.unlabelled)}")


def check_site_name(name: str) -> None:
    """Refuse a site name that could be more than one component of a path.

    Raises:
        ConfigError: The name is empty, too long, or has characters beyond letters, digits, `._-`.
    """
    if not _SAFE_NAME.fullmatch(name):
        raise ConfigError(_unsafe(name))


def read_site_config(path: Path) -> SiteConfig:
    """Read a site's file and make its paths absolute.

    Raises:
        ConfigError: Missing file, unknown or missing key, wrong type or value.
    """
    path = path.expanduser().absolute()
    config = load_config(SiteConfig, path)
    folder = path.parent

    def absolute(inner: Path) -> Path:
        return folder / inner.expanduser()

    def split(part: Split) -> Split:
        return Split(absolute(part.images), absolute(part.annotations))

    return dataclasses.replace(
        config,
        train=split(config.train),
        validation=split(config.validation),
        test=None if config.test is None else split(config.test),
        weights={model: absolute(weights) for model, weights in config.weights.items()},
        cache_dir=absolute(config.cache_dir),
        state_dir=absolute(config.state_dir),
    )


def find_site_config(site_name: str, local_dir: Path | None) -> SiteConfig:
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
