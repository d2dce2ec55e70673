"""FedMPT: federated multi-label prompt tuning. See README.md beside this file.

python jobs/fedmpt/job.py [--env sim|poc|prod] [--sites N] [--set key=value ...] [--resume RUN]
python jobs/fedmpt/job.py --export --export-dir build/jobs
"""

import sys
from pathlib import Path

from vltune_lab.jobs.global_test import finish
from vltune_lab.jobs.launch import main
from vltune_lab.jobs.resolve import JobKind

FEDMPT = JobKind(method="FedMPT", yaml=Path(__file__).with_name("fedmpt.yaml"), finish=finish)

if __name__ == "__main__":
    sys.exit(main(FEDMPT))
