"""The jobs of this repository: what `jobs/<job>/job.py` and the lab's commands run."""

from pathlib import Path

from vltune_lab.jobs.global_test import finish
from vltune_lab.jobs.resolve import JobKind

REPOSITORY = Path(__file__).resolve().parents[3]

FEDMPT = JobKind(
    method="FedMPT", yaml=REPOSITORY / "jobs" / "fedmpt" / "fedmpt.yaml", finish=finish
)
