"""`vltune bench`: measure, and bring the README's tables up to date."""

from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console
from rich.progress import Progress

from vltune_lab.bench import tables as readme_tables
from vltune_lab.bench.provenance import provenance
from vltune_lab.bench.results import RESULTS_FOLDER, load_results, write_results

bench_app = typer.Typer(help="Measurements and the tables made from them.", no_args_is_help=True)

Quick = Annotated[bool, typer.Option("--quick", help="Small, to see that it runs.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `vltune`."""
    app.add_typer(bench_app, name="bench")


@bench_app.command("speed")
def speed(
    quick: Quick = False,
    out: Annotated[Path, typer.Option(help="Result file.")] = RESULTS_FOLDER / "speed.json",
) -> None:
    """FedMPT's training step against the published dataflow."""
    from vltune_lab.bench.speed import run_speed

    rows = run_speed(quick)
    command = "vltune bench speed" + (" --quick" if quick else "")
    path = write_results(out, {"benchmark": "speed", **provenance(command), "rows": rows})
    show(path)


@bench_app.command("fedmpt-demo")
def fedmpt_demo(
    quick: Quick = False,
    seeds: Annotated[str, typer.Option(help="Comma-separated run seeds.")] = "7,8,9",
    world: Annotated[Path, typer.Option(help="Folder of the demo world.")] = Path("build/world"),
    out: Annotated[Path, typer.Option(help="Result file.")] = RESULTS_FOLDER / "fedmpt-demo.json",
) -> None:
    """FedMPT against zero-shot on the embedded world, one demo run a seed."""
    from vltune_lab.bench.fedmpt_demo import run_fedmpt_demo

    numbers = [int(text) for text in seeds.split(",")]
    rows = run_fedmpt_demo(numbers, world, Console(), quick=quick)
    command = f"vltune bench fedmpt-demo --seeds {seeds}" + (" --quick" if quick else "")
    content = {"protocol": "fedmpt-demo", **provenance(command), "rows": rows}
    show(write_results(out, content))


@bench_app.command("conditions")
def conditions(
    quick: Quick = False,
    seeds: Annotated[str, typer.Option(help="Comma-separated run seeds.")] = "7,8,9",
    world: Annotated[Path, typer.Option(help="Folder of the demo world.")] = Path("build/world"),
    out: Annotated[Path, typer.Option(help="Result file.")] = RESULTS_FOLDER / "conditions.json",
) -> None:
    """FedMPT with found, published, unrelated and no conditions on the embedded world."""
    from vltune_lab.bench.conditions import run_conditions

    with Progress(console=Console()) as bars:
        rows = run_conditions([int(text) for text in seeds.split(",")], world, bars, quick=quick)
    command = f"vltune bench conditions --seeds {seeds}" + (" --quick" if quick else "")
    show(write_results(out, {"protocol": "conditions", **provenance(command), "rows": rows}))


@bench_app.command("fedvlm")
def fedvlm(
    quick: Quick = False,
    seeds: Annotated[str, typer.Option(help="Comma-separated seeds.")] = "8,9,10",
    settings: Annotated[str, typer.Option(help="Comma-separated; empty: all.")] = "",
    worlds: Annotated[Path, typer.Option(help="Folder of the worlds.")] = Path("build/preference"),
    out: Annotated[Path, typer.Option(help="Result file.")] = RESULTS_FOLDER / "fedvlm.json",
) -> None:
    """FedVLM's personalised LoRA against its rivals on the preference world."""
    from vltune_lab.bench.fedvlm import run_fedvlm, settings_of

    numbers = [int(text) for text in seeds.split(",")]
    with Progress(console=Console()) as bars:
        rows = run_fedvlm(numbers, worlds, bars, quick=quick, settings=settings_of(settings))
    command = f"vltune bench fedvlm --seeds {seeds}"
    command += f" --settings '{settings}'" if settings else ""
    command += " --quick" if quick else ""
    show(write_results(out, {"protocol": "fedvlm", **provenance(command), "rows": rows}))


@bench_app.command("fedumm")
def fedumm(  # noqa: PLR0913 - its options
    quick: Quick = False,
    seeds: Annotated[str, typer.Option(help="Comma-separated seeds.")] = "8,9,10",
    backbone: Annotated[str, typer.Option(help="Name of the model.")] = "janus-compact",
    weights: Annotated[str, typer.Option(help="Its folder.")] = "assets/janus-compact",
    sites: Annotated[str, typer.Option(help="Comma-separated numbers of sites.")] = "2,4,8,16",
    alphas: Annotated[str, typer.Option(help="Comma-separated; inf is IID.")] = "0.1,0.5,1.0,inf",
    mix: Annotated[
        str, typer.Option(help="both, or half: answering sites, drawing sites.")
    ] = "both",
    overrides: Annotated[list[str], typer.Option("--set", help="key=value of the job.")] = [],  # noqa: B006 - typer reads the default once
    worlds: Annotated[Path, typer.Option(help="Folder of the worlds.")] = Path("build/unified"),
    out: Annotated[Path, typer.Option(help="Result file.")] = RESULTS_FOLDER / "fedumm.json",
) -> None:
    """FedUMM over numbers of sites and heterogeneity, against centralised, local and untrained."""
    from vltune_lab.bench.fedumm import Mix, Plan, run_fedumm

    plan = Plan(
        backbone,
        weights,
        tuple(int(text) for text in sites.split(",")),
        tuple(float(text) for text in alphas.split(",")),
        tuple(overrides),
        quick,
        cast(Mix, mix),
    )
    with Progress(console=Console()) as bars:
        rows = run_fedumm([int(text) for text in seeds.split(",")], worlds, bars, plan)
    command = f"vltune bench fedumm --seeds {seeds} --backbone {backbone} --weights {weights}"
    command += f" --sites {sites} --alphas {alphas}" + (f" --mix {mix}" if mix != "both" else "")
    command += "".join(f" --set {text}" for text in overrides) + (" --quick" if quick else "")
    show(write_results(out, {"protocol": "fedumm", **provenance(command), "rows": rows}))


@bench_app.command("fedumm-dataflow")
def fedumm_dataflow(
    quick: Quick = False,
    seeds: Annotated[str, typer.Option(help="Comma-separated seeds.")] = "8,9,10",
    worlds: Annotated[Path, typer.Option(help="Folder of start and worlds.")] = Path(
        "build/fedumm-dataflow"
    ),
    out: Annotated[Path, typer.Option(help="Result file.")] = RESULTS_FOLDER
    / "fedumm-dataflow.json",
) -> None:
    """FedUMM on blip_vqa against a re-implementation of research/fedumm's dataflow."""
    from vltune_lab.bench.fedumm_dataflow import run_fedumm_dataflow

    with Progress(console=Console()) as bars:
        rows = run_fedumm_dataflow(
            [int(text) for text in seeds.split(",")], worlds, bars, quick=quick
        )
    command = f"vltune bench fedumm-dataflow --seeds {seeds}" + (" --quick" if quick else "")
    show(write_results(out, {"protocol": "fedumm-dataflow", **provenance(command), "rows": rows}))


@bench_app.command("attacks")
def attacks(
    quick: Quick = False,
    seeds: Annotated[str, typer.Option(help="Comma-separated run seeds.")] = "7",
    rules: Annotated[str, typer.Option(help="Comma-separated; empty: all.")] = "",
    kinds: Annotated[str, typer.Option(help="Of attack, comma-separated; empty: all.")] = "",
    counts: Annotated[str, typer.Option(help="Of malicious sites, comma-separated.")] = "2,1",
    world: Annotated[Path, typer.Option(help="Folder of world and rows.")] = Path("build/attacks"),
    out: Annotated[Path, typer.Option(help="Result file.")] = RESULTS_FOLDER / "attacks.json",
) -> None:
    """FedMPT with one and two of eight sites malicious, under every robust rule."""
    from vltune_lab.bench.attacks import ATTACKS, RULES, Plan, run_attacks

    plan = Plan(
        tuple(int(text) for text in seeds.split(",")),
        tuple(rules.split(",")) if rules else tuple(RULES),
        tuple(kinds.split(",")) if kinds else ATTACKS,
        tuple(int(text) for text in counts.split(",")),
        quick,
    )
    with Progress(console=Console()) as bars:
        rows = run_attacks(world, bars, plan)
    command = f"vltune bench attacks --seeds {seeds} --counts {counts}"
    command += f" --rules {rules}" if rules else ""
    command += f" --kinds {kinds}" if kinds else ""
    command += " --quick" if quick else ""
    show(write_results(out, {"protocol": "attacks", **provenance(command), "rows": rows}))


@bench_app.command("encryption")
def encryption(
    quick: Quick = False,
    out: Annotated[Path, typer.Option(help="Result file.")] = RESULTS_FOLDER / "encryption.json",
) -> None:
    """One round's mean through FLARE's homomorphic encryption: agreement, bytes and seconds."""
    from vltune_lab.bench.encryption import run_encryption

    rows = run_encryption(quick)
    command = "vltune bench encryption" + (" --quick" if quick else "")
    path = write_results(out, {"benchmark": "encryption", **provenance(command), "rows": rows})
    show(path)


@bench_app.command("probes")
def probes(
    quick: Quick = False,
    seeds: Annotated[str, typer.Option(help="Comma-separated run seeds.")] = "7,8,9",
    world: Annotated[Path, typer.Option(help="Folder of world and rows.")] = Path("build/attacks"),
    out: Annotated[Path, typer.Option(help="Result file.")] = RESULTS_FOLDER / "probes.json",
) -> None:
    """What a curious server can tell from a FedMPT update: membership and inversion."""
    from vltune_lab.bench.probes import run_probes

    with Progress(console=Console()) as bars:
        rows = run_probes([int(text) for text in seeds.split(",")], world, bars, quick=quick)
    command = f"vltune bench probes --seeds {seeds}" + (" --quick" if quick else "")
    show(write_results(out, {"protocol": "probes", **provenance(command), "rows": rows}))


@bench_app.command("florence-shape")
def florence_shape(
    quick: Quick = False,
    out: Annotated[Path, typer.Option(help="Result file.")] = RESULTS_FOLDER
    / "florence-shape.json",
) -> None:
    """Time, memory and bytes of a LoRA step on Florence-2-base's shape, with random weights."""
    from vltune_lab.bench.florence_shape import run_florence_shape

    rows = run_florence_shape(quick)
    command = "vltune bench florence-shape" + (" --quick" if quick else "")
    path = write_results(out, {"benchmark": "florence-shape", **provenance(command), "rows": rows})
    show(path)


@bench_app.command("traffic")
def traffic(
    exchange: Annotated[
        list[str], typer.Option(help="MODEL=FOLDER of weights: a round is really run.")
    ] = [],  # noqa: B006 - typer reads the default once
    out: Annotated[Path, typer.Option(help="Result file.")] = RESULTS_FOLDER / "traffic.json",
) -> None:
    """Bytes a round of LoRA's factors against all weights, also of models too large to hold."""
    from vltune_lab.bench.model_shapes import run_traffic

    folders = {name: Path(folder) for name, _, folder in (text.partition("=") for text in exchange)}
    command = "vltune bench traffic" + "".join(f" --exchange {text}" for text in exchange)
    rows = run_traffic(exchanged=folders)
    show(write_results(out, {"benchmark": "traffic", **provenance(command), "rows": rows}))


@bench_app.command("scenes")
def scenes(
    quick: Quick = False,
    seeds: Annotated[str, typer.Option(help="Comma-separated seeds.")] = "1,2,3",
    out: Annotated[Path, typer.Option(help="Result file.")] = RESULTS_FOLDER / "scenes.json",
) -> None:
    """Scenes drawn and written a second, on one core."""
    from vltune_lab.bench.scenes import run_scenes

    rows = run_scenes([int(text) for text in seeds.split(",")], quick=quick)
    command = f"vltune bench scenes --seeds {seeds}" + (" --quick" if quick else "")
    show(write_results(out, {"protocol": "scenes", **provenance(command), "rows": rows}))


@bench_app.command("tables")
def tables(
    check: Annotated[bool, typer.Option("--check", help="Only say whether they differ.")] = False,
    readme: Annotated[Path, typer.Option(help="File with table markers.")] = Path("README.md"),
    results: Annotated[Path, typer.Option(help="Folder of result files.")] = RESULTS_FOLDER,
) -> None:
    """Rewrite the README's tables from the result files."""
    if check:
        readme_tables.check(readme, results)
        return
    changed = readme_tables.rewrite(readme, results)
    text = f"{readme}: {', '.join(changed) or 'nothing'} changed"
    Console().print(text, highlight=False, soft_wrap=True)


def show(path: Path) -> None:
    """Print a result file as a table, and where it is."""
    console = Console()
    console.print(
        readme_tables.table_of(load_results(path)), highlight=False, markup=False, soft_wrap=True
    )
    console.print(str(path), highlight=False, soft_wrap=True)
