"""`vltune`: the site's own commands. The lab adds its commands through an entry point."""

import json
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from vltune import __version__
from vltune.backbones.clip import BackboneConfig, load_clip
from vltune.config import ConfigError
from vltune.features import FeatureCache
from vltune.site_config import read_site_config

app = typer.Typer(
    help="Federated tuning of vision-language models on NVIDIA FLARE.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
cache_app = typer.Typer(help="The site's cache of frozen features.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")

SiteFile = Annotated[Path, typer.Option("--site", help="The site's vltune_site.yaml.")]
ModelName = Annotated[str, typer.Option("--model", help="open_clip model name of the job.")]
Weights = Annotated[str, typer.Option("--weights", help="Its weights; default: the site file's.")]


@app.command()
def version() -> None:
    """Print the version."""
    _say(__version__)


@app.command()
def doctor(  # noqa: PLR0913 - typer: an argument an option
    job: Annotated[Path, typer.Option("--job", help="Folder of the exported job.")],
    site: Annotated[
        list[Path] | None, typer.Option("--site", help="A vltune_site.yaml; may be repeated.")
    ] = None,
    kit: Annotated[
        Path | None,
        typer.Option("--startup-kit", help="The FLARE site's folder with startup/ and local/."),
    ] = None,
    lock: Annotated[
        Path | None, typer.Option(help="Compare versions with this lock file, not the export's.")
    ] = None,
    link_mbps: Annotated[
        float | None, typer.Option(help="Speed of the link to the server, megabits a second.")
    ] = None,
    disk_quota_mb: Annotated[float | None, typer.Option(help="Disk that may be used.")] = None,
    memory_limit_mb: Annotated[float | None, typer.Option(help="Memory that may be used.")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Encode every image, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, without a path.")] = False,
    private: Annotated[
        bool, typer.Option("--private", help="With --json: also what must not leave the site.")
    ] = False,
) -> None:
    """Say whether this site can run a job; exit status 0 if nothing fails, else 1."""
    # Behind this is peft, for which the other commands should not wait.
    from vltune.doctor import Options, examine, locate_site
    from vltune.doctor_job import read_exported_job
    from vltune.doctor_table import print_report

    options = Options(kit, lock, link_mbps, _bytes(disk_quota_mb), _bytes(memory_limit_mb), deep)
    exported = read_exported_job(job)
    reports = []
    files: list[Path | None] = [*site] if site else [None]
    for file in files:
        config, name = locate_site(file, kit)
        reports.append(examine(exported, config, name, options))
    if as_json:
        content = [report.to_mapping(private=private) for report in reports]
        typer.echo(json.dumps({"job": exported.job.get("name"), "sites": content}, indent=2))
    else:
        for report in reports:
            print_report(report, Console())
    if any(report.status == "fail" for report in reports):
        raise typer.Exit(1)


@app.command()
def allow(
    kit: Annotated[
        Path,
        typer.Option("--startup-kit", help="Folder of a FLARE server or site: startup/, local/."),
    ],
) -> None:
    """Let jobs that bring no code use VLTune's classes here (docs/deploy.md)."""
    from vltune.site_policy import allow_classes

    added = allow_classes(kit)
    _say("\n".join(f"added {name}" for name in added) or "all of VLTune's classes are allowed")


def _bytes(megabytes: float | None) -> int | None:
    return None if megabytes is None else int(1e6 * megabytes)


def _say(text: str) -> None:
    """Print a line as it is: paths may be long and may hold what rich takes for markup."""
    Console().print(text, highlight=False, markup=False, soft_wrap=True)


def _cache(site: Path, model: str, weights: str) -> FeatureCache:
    config = read_site_config(site)
    chosen = weights or str(config.weights.get(model, ""))
    if not chosen:
        raise ConfigError(
            f"{site}: names no weights of {model!r}. Add them under `weights:`, or give --weights."
        )
    return FeatureCache(config.cache_dir, load_clip(BackboneConfig(model, chosen)))


@cache_app.command("size")
def cache_size(
    site: SiteFile,
    model: ModelName = "clip-compact",
    weights: Weights = "",
    images: Annotated[int, typer.Option(help="Number of images to estimate for.")] = 1000,
) -> None:
    """Say where the cache is and how much disk a number of images takes."""
    cache = _cache(site, model, weights)
    _say(f"folder: {cache.folder}")
    _say(f"{images} images take {cache.estimate_bytes(images) / 1e6:.1f} MB")


@cache_app.command("delete")
def cache_delete(site: SiteFile, model: ModelName = "clip-compact", weights: Weights = "") -> None:
    """Delete the features of one backbone; they are encoded again when next needed."""
    cache = _cache(site, model, weights)
    cache.delete()
    _say(f"deleted {cache.folder}")


def main() -> None:
    """Run the command line; our own errors end with their message and exit status 1."""
    for entry in entry_points(group="vltune.commands"):
        entry.load()(app)
    try:
        app()
    except ValueError as error:
        # As text: a message may hold brackets, which rich would take for markup.
        message = Text.assemble(("error:", "red"), f" {error}")
        Console(stderr=True).print(message, highlight=False, soft_wrap=True)
        sys.exit(1)
