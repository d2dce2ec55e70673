"""FedUMM: LoRA of a model that understands and generates. See README.md beside this file.

python jobs/fedumm/job.py [--env sim|poc|prod] [--sites N] [--set key=value ...] [--resume RUN]
python jobs/fedumm/job.py --export --export-dir build/jobs
"""

import sys

from vltune_lab.jobs.kinds import FEDUMM
from vltune_lab.jobs.launch import main

if __name__ == "__main__":
    sys.exit(main(FEDUMM))
