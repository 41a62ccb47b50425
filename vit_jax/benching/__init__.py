"""Measures parts of a run on the machine at hand: `vit bench`, and what benchmarks/ share."""
