"""Benchmarks: `python -m tests.perf [NAME...] [--quick]` runs them and writes `results/benchmarks.md`."""
