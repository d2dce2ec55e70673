"""Frozen towers: the only room that builds models and loads their weights."""
