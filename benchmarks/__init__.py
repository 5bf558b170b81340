"""Benchmarks: comfyd, other programs and a floor measured in the same run. See README.md."""
