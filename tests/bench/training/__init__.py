"""Tests of the benchmarks of training."""
