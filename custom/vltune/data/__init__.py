"""Site data to batches."""
