"""Frozen towers: the only place that loads weights."""
