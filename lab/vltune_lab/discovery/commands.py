"""`vltune conditions`: make, check and show condition caches."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table
from rich.text import Text

from vltune.conditions import ConditionSet, conditions_from_mapping, read_condition_cache
from vltune.files import OutputError, write_json_atomic
from vltune_lab.discovery.answers import one_line
from vltune_lab.discovery.class_list import read_class_list

if TYPE_CHECKING:
    from vltune_lab.discovery.build import BuildOptions

conditions_app = typer.Typer(help="Visual conditions of a class list.", no_args_is_help=True)

Cache = Annotated[Path, typer.Argument(metavar="PATH", help="A condition cache.")]
BACKENDS = ("openai", "transformers", "embedded")


def register(app: typer.Typer) -> None:
    """Add the commands to `vltune`."""
    app.add_typer(conditions_app, name="conditions")


@conditions_app.command("build")
def build(  # noqa: PLR0913 - one argument an option
    classes: Annotated[Path, typer.Option(help="Text file, one class name a line.")],
    out: Annotated[Path, typer.Option(help="Cache to write, NAME.json.")],
    model: Annotated[str, typer.Option(help="As the endpoint calls it, or a folder.")] = "",
    k: Annotated[int, typer.Option(help="Number of conditions.")] = 5,
    llm: Annotated[str, typer.Option(help=f"One of: {', '.join(BACKENDS)}.")] = BACKENDS[0],
    base_url: Annotated[
        str, typer.Option(help="OpenAI-compatible endpoint; the key is VLTUNE_LLM_KEY.")
    ] = "https://api.openai.com/v1",
    seed: Annotated[int, typer.Option(help="Of the sampling and the model.")] = 1,
    max_requests: Annotated[int, typer.Option(help="Budget, repeats included.")] = 300,
    max_tokens: Annotated[int, typer.Option(help="Budget, questions and answers.")] = 1_000_000,
    max_answer_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 4000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Requests at once.")] = 4,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for an answer.")] = 120.0,
    repeats: Annotated[int, typer.Option(min=0, help="After a request that failed.")] = 4,
) -> None:
    """Find the conditions of a class list with a language model.

    `--llm openai` asks an endpoint; answers are kept beside the cache and the same command again
    goes on from them. `--llm transformers` asks a model in a local folder, --model, the same way,
    one question at a time; address, workers, timeout and repeats have no use there.
    `--llm embedded` scores a list of axes offline with a small model; the options from --base-url
    on have no use there. The cache is written when all is well, else it stays as it was.
    """
    from vltune_lab.discovery.asking import Asker
    from vltune_lab.discovery.backend import BackendError, Budget
    from vltune_lab.discovery.backends import BackendOptions, open_backend
    from vltune_lab.discovery.build import BuildOptions, build_conditions
    from vltune_lab.discovery.raw_answers import RawAnswers, answers_path

    if llm not in BACKENDS:
        raise BackendError(f"--llm is {llm!r}; expected one of: {', '.join(BACKENDS)}.")
    if out.suffix != ".json" or out.is_dir():
        raise OutputError(f"--out {out}: expected the name of a file that ends in .json.")
    classnames = read_class_list(classes)
    options = BuildOptions(out.stem, k, seed, max_requests)
    if llm == "embedded":
        _build_embedded(classnames, options, model, out)
        return
    budget = Budget(max_requests, max_tokens)
    console = Console()
    began = time.perf_counter()
    language_model = BackendOptions(
        llm, model, base_url, max_answer_tokens, workers, timeout, repeats
    )
    opened = open_backend(language_model, budget)
    if opened.warning:
        _say(console, opened.warning)
    asker = Asker(opened.backend, RawAnswers(answers_path(out)), opened.workers)
    try:
        with Progress(console=console) as bars:
            content = build_conditions(classnames, options, asker, _stage_bars(bars))
        write_json_atomic(out, content)
    finally:
        seconds = time.perf_counter() - began
        _say(
            console,
            f"{budget.requests} requests, {budget.tokens} tokens, {seconds:.1f} s; "
            f"{asker.asked.resumed} answers from an earlier run",
        )
    console.print(table_of(content))
    _say(console, str(out))


def _build_embedded(
    classnames: tuple[str, ...], options: "BuildOptions", model: str, out: Path
) -> None:
    from vltune_lab.discovery.backend import BackendError
    from vltune_lab.discovery.likelihood_build import build_by_likelihood
    from vltune_lab.discovery.small_model import load_small_model

    if model:
        raise BackendError(f"--model is {model!r}; --llm embedded has one model, so leave it out.")
    console = Console()
    began = time.perf_counter()
    small = load_small_model()
    with Progress(console=console) as bars:
        content = build_by_likelihood(classnames, options, small, _stage_bars(bars))
    write_json_atomic(out, content)
    _say(console, f"0 requests, 0 tokens, {time.perf_counter() - began:.1f} s")
    fallback = content["made_by"]["fallback"]
    if fallback:
        _say(console, f"warning: from the paper, not from the model: {', '.join(fallback)}")
    console.print(table_of(content))
    _say(console, str(out))


@conditions_app.command("check")
def check(
    path: Cache,
    classes: Annotated[
        Path | None, typer.Option(help="Class list that the cache must have been made for.")
    ] = None,
) -> None:
    """Check a cache: form, hashes and, if given, the class list."""
    content = read_condition_cache(path)
    names = read_class_list(classes) if classes else None
    found = conditions_from_mapping(content, names, str(path))
    _say(Console(), f"{path}: good. {_summary(found, content)}")


@conditions_app.command("show")
def show(path: Cache) -> None:
    """Show the conditions of a cache, and where they come from."""
    content = read_condition_cache(path)
    found = conditions_from_mapping(content, None, str(path))
    console = Console()
    console.print(table_of(content))
    _say(console, _summary(found, content))


def table_of(content: dict[str, Any]) -> Table:
    """Return the conditions of a checked cache as a table: condition, gloss, score, origin."""
    made_by = content["made_by"]
    candidates = made_by.get("candidates")
    scores = {
        entry["name"]: entry.get("score")
        for entry in (candidates if isinstance(candidates, list) else [])
        if isinstance(entry, dict) and isinstance(entry.get("name"), str)
    }
    model = made_by.get("model")
    # A foreign cache may hold anything here, also what steers a terminal.
    origin = one_line(f"{made_by['method']} {model}" if model else made_by["method"])
    table = Table("condition", "gloss", "score", "origin")
    for entry in content["conditions"]:
        score = scores.get(entry["name"])
        shown = f"{score:.2f}" if isinstance(score, float | int) else "-"
        # As text: names may hold brackets, which rich would take for markup.
        table.add_row(*map(Text, (entry["name"], entry["gloss"], shown, origin)))
    return table


def _summary(found: ConditionSet, content: dict[str, Any]) -> str:
    made_by = content["made_by"]
    return (
        f"{len(found.names)} conditions, {len(found.classnames)} classes "
        f"({found.class_list_hash[:12]}), "
        + one_line(f"made by {made_by['method']}, {made_by['date']}")
    )


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _stage_bars(bars: Progress) -> Callable[[str, int, int], None]:
    """Return a function that shows one bar for each stage."""
    tasks: dict[str, TaskID] = {}

    def update(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage)
        bars.update(tasks[stage], completed=done, total=total)

    return update
