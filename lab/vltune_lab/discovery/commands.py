"""`vltune conditions`: make, check, show and edit condition caches."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TaskID

from vltune.files import OutputError, write_json_atomic
from vltune_lab.discovery.class_list import read_class_list
from vltune_lab.discovery.review_commands import add_review_commands, say, table_of

if TYPE_CHECKING:
    from vltune_lab.discovery.backend import Budget
    from vltune_lab.discovery.backends import BackendOptions
    from vltune_lab.discovery.build import BuildOptions

conditions_app = typer.Typer(help="Visual conditions of a class list.", no_args_is_help=True)
add_review_commands(conditions_app)

BACKENDS = ("openai", "transformers", "embedded", "none")


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
    embedding_model: Annotated[
        str, typer.Option(help="Compares names by meaning; without it by letters alone.")
    ] = "",
    same_meaning: Annotated[
        float, typer.Option(help="Least cosine of names that are one; differs between models.")
    ] = 0.9,
) -> None:
    """Find the conditions of a class list with a language model.

    `--llm openai` asks an endpoint; answers are kept beside the cache and the same command again
    goes on from them. `--llm transformers` asks a model in a local folder, --model, the same way,
    one question at a time; address, workers, timeout and repeats have no use there.
    `--llm embedded` scores a list of axes offline with a small model; the options from --base-url
    on have no use there. `--llm none` takes the paper's conditions over. The cache is written when
    all is well, else it stays as it was.
    """
    from vltune_lab.discovery.backend import BackendError, Budget
    from vltune_lab.discovery.backends import BackendOptions
    from vltune_lab.discovery.build import BuildOptions

    if llm not in BACKENDS:
        raise BackendError(f"--llm is {llm!r}; expected one of: {', '.join(BACKENDS)}.")
    if out.suffix != ".json" or out.is_dir():
        raise OutputError(f"--out {out}: expected the name of a file that ends in .json.")
    classnames = read_class_list(classes)
    options = BuildOptions(out.stem, k, seed, max_requests, same_meaning)
    if llm in ("embedded", "none"):
        for option, value in (("--model", model), ("--embedding-model", embedding_model)):
            if value:
                raise BackendError(f"{option} is {value!r}; --llm {llm} has no use for it.")
        (_build_embedded if llm == "embedded" else _build_from_paper)(classnames, options, out)
        return
    language_model = BackendOptions(
        llm, model, base_url, max_answer_tokens, workers, timeout, repeats, embedding_model
    )
    _build_by_asking(classnames, options, language_model, Budget(max_requests, max_tokens), out)


def _build_by_asking(
    classnames: tuple[str, ...],
    options: "BuildOptions",
    language_model: "BackendOptions",
    budget: "Budget",
    out: Path,
) -> None:
    from vltune_lab.discovery.asking import Asker
    from vltune_lab.discovery.backends import open_backend
    from vltune_lab.discovery.build import build_conditions
    from vltune_lab.discovery.embedding import embedding_asker
    from vltune_lab.discovery.raw_answers import RawAnswers, answers_path

    console = Console()
    began = time.perf_counter()
    opened = open_backend(language_model, budget)
    if opened.warning:
        say(console, opened.warning)
    raw = RawAnswers(answers_path(out))
    asker = Asker(opened.backend, raw, opened.workers)
    embedder = embedding_asker(opened.embedder, raw, opened.workers) if opened.embedder else None
    try:
        with Progress(console=console) as bars:
            content = build_conditions(classnames, options, asker, _stage_bars(bars), embedder)
        write_json_atomic(out, content)
    finally:
        seconds = time.perf_counter() - began
        resumed = asker.asked.resumed + (embedder.asked.resumed if embedder else 0)
        say(
            console,
            f"{budget.requests} requests, {budget.tokens} tokens, {seconds:.1f} s; "
            f"{resumed} answers from an earlier run",
        )
    console.print(table_of(content))
    say(console, str(out))


def _build_embedded(classnames: tuple[str, ...], options: "BuildOptions", out: Path) -> None:
    from vltune_lab.discovery.likelihood_build import build_by_likelihood
    from vltune_lab.discovery.small_model import load_small_model

    console = Console()
    began = time.perf_counter()
    small = load_small_model()
    with Progress(console=console) as bars:
        content = build_by_likelihood(classnames, options, small, _stage_bars(bars))
    write_json_atomic(out, content)
    say(console, f"0 requests, 0 tokens, {time.perf_counter() - began:.1f} s")
    fallback = content["made_by"]["fallback"]
    if fallback:
        say(console, f"warning: from the paper, not from the model: {', '.join(fallback)}")
    console.print(table_of(content))
    say(console, str(out))


def _build_from_paper(classnames: tuple[str, ...], options: "BuildOptions", out: Path) -> None:
    from vltune_lab.discovery.from_paper import build_from_paper

    content = build_from_paper(options.name, classnames, options.k)
    write_json_atomic(out, content)
    Console().print(table_of(content))
    say(Console(), str(out))


def _stage_bars(bars: Progress) -> Callable[[str, int, int], None]:
    """Return a function that shows one bar for each stage."""
    tasks: dict[str, TaskID] = {}

    def update(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage)
        bars.update(tasks[stage], completed=done, total=total)

    return update
