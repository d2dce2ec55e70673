"""Launching a job in any environment and bringing its results home; common to all of `jobs/`."""
