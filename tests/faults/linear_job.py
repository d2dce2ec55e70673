"""The command that a user gives, for the tiny linear job: same options as jobs/<job>/job.py."""

import sys
from pathlib import Path

from vltune_lab.jobs.launch import main
from vltune_lab.jobs.resolve import JobKind

if __name__ == "__main__":
    sys.exit(main(JobKind("Linear", Path(__file__).with_name("linear.yaml"))))
