"""What is never deployed to a site: the embedded world, pre-training, benchmarks, reports."""
