"""Training of the compact backbones on the embedded world."""
