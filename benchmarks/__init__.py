"""Benchmarks: what the library costs, measured against something else in the same run."""
