"""FedMPT: federated multi-label prompt tuning. See README.md beside this file.

python jobs/fedmpt/job.py [--env sim|poc|prod] [--sites N] [--set key=value ...] [--resume RUN]
python jobs/fedmpt/job.py --export --export-dir build/jobs
"""

import sys
from pathlib import Path

from vltune.config import from_mapping
from vltune_lab.jobs.launch import main
from vltune_lab.jobs.resolve import Job, JobKind

YAML = Path(__file__).with_name("fedmpt.yaml")


def check(job: Job) -> None:
    """Read the job as a site will: a wrong key ends here and not at every site."""
    from vltune.algorithms.fedmpt import FedMPTConfig
    from vltune.algorithms.multilabel_site import MultiLabelJob

    from_mapping(FedMPTConfig, job.get("model", {}), f"{YAML}: model")
    known = {key: job[key] for key in MultiLabelJob.__dataclass_fields__ if key in job}
    from_mapping(MultiLabelJob, known, str(YAML))


FEDMPT = JobKind(method="FedMPT", yaml=YAML, check=check)

if __name__ == "__main__":
    sys.exit(main(FEDMPT))
