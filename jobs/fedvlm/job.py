"""FedVLM: personalised LoRA of a vision-language model. See README.md beside this file.

python jobs/fedvlm/job.py [--env sim|poc|prod] [--sites N] [--set key=value ...] [--resume RUN]
python jobs/fedvlm/job.py --export --export-dir build/jobs
"""

import sys

from vltune_lab.jobs.kinds import FEDVLM
from vltune_lab.jobs.launch import main

if __name__ == "__main__":
    sys.exit(main(FEDVLM))
