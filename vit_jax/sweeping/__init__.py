"""Sweeps: many trainings of one recipe, each a `vit train` in a folder of its own."""
