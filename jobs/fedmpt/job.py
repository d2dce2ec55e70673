"""FedMPT: federated multi-label prompt tuning. See README.md beside this file.

python jobs/fedmpt/job.py [--env sim|poc|prod] [--sites N] [--set key=value ...] [--resume RUN]
python jobs/fedmpt/job.py --export --export-dir build/jobs
"""

import sys

from vltune_lab.jobs.kinds import FEDMPT
from vltune_lab.jobs.launch import main

if __name__ == "__main__":
    sys.exit(main(FEDMPT))
