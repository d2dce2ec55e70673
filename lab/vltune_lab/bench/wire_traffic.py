"""What a compact model's factors cost on the wire: one round of a real FedUMM federation.

Two sites of a few images train one round in one process. Bytes are those of the serialised messages
that the server sends and receives, metrics and counts of examples included.
"""

import tempfile
from pathlib import Path
from typing import Any

from vltune_lab.bench.fedumm import Plan, make_world
from vltune_lab.bench.fedumm_runs import site_names, write_files
from vltune_lab.bench.run_state import in_a_federation_of, rounds_of
from vltune_lab.jobs.in_process import run_in_process
from vltune_lab.jobs.kinds import FEDUMM
from vltune_lab.jobs.resolve import resolve_job

SEED = 7
SITES = 2


def measure_exchange(
    name: str, weights: Path, *, target: str, rank: int, alpha: float
) -> dict[str, float]:
    """Bytes of one round, the mean over the sites.

    Args:
        name: Of the model.
        weights: Its folder.
        target: Modules with LoRA.
        rank: Of LoRA.
        alpha: Of LoRA.

    Returns:
        `wire_bytes_up`, `wire_bytes_down`.
    """
    job = resolve_job(
        FEDUMM,
        [
            f"seed={SEED}",
            f"backbone.model={name}",
            f"backbone.weights={weights.absolute()}",
            "judge=null",
            "samples={}",
            "federation.rounds=1",
            "federation.tensorboard=false",
        ],
    )
    job["lora"] |= {"target": target, "rank": rank, "alpha": alpha}
    with tempfile.TemporaryDirectory(prefix="vltune-bench-") as text:
        place = Path(text)
        world = make_world(Plan(name, str(weights), quick=True), SEED, SITES, 1.0, place)
        files = write_files(world, place, can_draw=False)
        names = site_names(world)
        whole: dict[str, Any] = in_a_federation_of(job, len(names))
        server = run_in_process(whole, names, place / "run", site_files=files)
        trained = next(record for record in rounds_of(server) if record.get("bytes_up"))
    return {
        f"wire_{key}": sum(trained[key].values()) / len(names) for key in ("bytes_up", "bytes_down")
    }
