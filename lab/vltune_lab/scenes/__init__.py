"""The embedded world: labelled scenes composed from licensed sprites."""
