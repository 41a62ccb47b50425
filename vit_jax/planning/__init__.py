"""Estimates memory, speed and cost of a run on any TPU or GPU, by compiling the run's own step."""
