"""Benchmarks: each protocol is one command and one result file."""
