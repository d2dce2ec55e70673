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
prompts and answers says so and names other files, see `vltune.site_settings`.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

from vltune.config import ConfigError, from_mapping, read_mapping
from vltune.site_data import AnswerSplit as AnswerSplit
from vltune.site_data import Split as Split
from vltune.site_settings import AnswerSiteConfig as AnswerSiteConfig
from vltune.site_settings import AnySiteConfig as AnySiteConfig
from vltune.site_settings import QuestionSiteConfig as QuestionSiteConfig
from vltune.site_settings import SiteConfig as SiteConfig
from vltune.site_settings import UnifiedSiteConfig as UnifiedSiteConfig
from vltune.site_settings import VqaSiteConfig as VqaSiteConfig
from vltune.site_settings import is_safe_name, unsafe_name

FILE_NAME = "vltune_site.yaml"
VARIABLE = "VLTUNE_SITE_CONFIG"
SITE_PLACEHOLDER = "{site}"


_KINDS: dict[str, type[AnySiteConfig]] = {
    "multilabel": SiteConfig,
    "preference": AnswerSiteConfig,
    "captions": AnswerSiteConfig,
    "vqa": VqaSiteConfig,
    "unified": UnifiedSiteConfig,
}


def check_site_name(name: str) -> None:
    """Refuse a site name that could be more than one component of a path.

    Raises:
        ConfigError: The name is empty, too long, or has characters beyond letters, digits, `._-`.
    """
    if not is_safe_name(name):
        raise ConfigError(unsafe_name(name))


def read_site_config(path: Path) -> AnySiteConfig:
    """Read a site's file and make its paths absolute.

    Raises:
        ConfigError: Missing file, unknown or missing key, wrong type or value.
    """
    path = _own(path).absolute()
    mapping = read_mapping(path)
    kind = mapping.get("data", "multilabel")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigError(f"{path}: data: expected one of {', '.join(_KINDS)}, got {kind!r}")
    config: AnySiteConfig = from_mapping(_KINDS[kind], mapping, str(path))
    try:
        resolved: AnySiteConfig = _absolute(config, path.parent)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    return resolved


def _own(path: Path) -> Path:
    """Put the home folder in the place of `~`.

    Raises:
        ConfigError: There is no such user, or the path has a zero byte or half a character.
    """
    try:
        os.fsencode(path)
        if "\x00" in str(path):
            raise ValueError("a zero byte")
        return path.expanduser()
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{str(path)!r} is no path ({error}). Correct vltune_site.yaml."
        ) from error


def _absolute(config: Any, folder: Path) -> Any:
    """Join relative paths, in nested dataclasses too, to `folder`."""
    if isinstance(config, Path):
        return folder / _own(config)
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


def require_answers(config: AnySiteConfig) -> QuestionSiteConfig:
    """Return the configuration of a site with prompts and answers.

    Raises:
        ConfigError: The site's data are of another kind.
    """
    if not isinstance(config, QuestionSiteConfig):
        raise ConfigError(
            "this job needs `data: preference`, `data: captions` or `data: vqa`, but this site's "
            f"file says `data: {config.data}`. Give the site the file of its answers (see "
            "docs/site_config.md)."
        )
    return config


def require_unified(config: AnySiteConfig) -> UnifiedSiteConfig:
    """Return the configuration of a site that answers, draws, or does both.

    Raises:
        ConfigError: The site's data are of another kind.
    """
    if not isinstance(config, UnifiedSiteConfig):
        raise ConfigError(
            f"this job needs `data: unified`, but this site's file says `data: {config.data}`. "
            "Name its questions under `vqa:` and its captioned images under `captions:` (see "
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


def _not_found(site_name: str, variable: str, tried: Path | None, local: Path | None) -> str:
    looked = f"{VARIABLE}={variable} ({tried})" if variable else f"{VARIABLE} (not set)"
    unused = ", not used while the variable is set" if variable else ""
    place = f"{local}{unused}" if local is not None else "the site's local folder (there is none)"
    return (
        f"site {site_name}: no {FILE_NAME}. Looked at {looked} and at {place}. Write one (see "
        f"docs/site_config.md) and put it there, or set {VARIABLE} to its path; {SITE_PLACEHOLDER} "
        "in the path stands for the site's name."
    )
