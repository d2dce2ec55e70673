"""The jobs of this repository: what `jobs/<job>/job.py` and the lab's commands run."""

from pathlib import Path

from vltune.algorithms.fedmpt import FedMPTConfig
from vltune.algorithms.multilabel_site import MultiLabelJob
from vltune.config import from_mapping
from vltune_lab.jobs.global_test import finish
from vltune_lab.jobs.resolve import Job, JobKind

REPOSITORY = Path(__file__).resolve().parents[3]
FEDMPT_YAML = REPOSITORY / "jobs" / "fedmpt" / "fedmpt.yaml"


def check_fedmpt(job: Job) -> None:
    """Read the job as a site will: a wrong key ends here and not at every site."""
    from_mapping(FedMPTConfig, job.get("model", {}), f"{FEDMPT_YAML}: model")
    known = {key: job[key] for key in MultiLabelJob.__dataclass_fields__ if key in job}
    from_mapping(MultiLabelJob, known, str(FEDMPT_YAML))


FEDMPT = JobKind(method="FedMPT", yaml=FEDMPT_YAML, check=check_fedmpt, finish=finish)
