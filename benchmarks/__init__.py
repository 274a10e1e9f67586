"""Benchmarks: ``python -m benchmarks NAME...`` prints tables and appends them to RESULTS.md."""
