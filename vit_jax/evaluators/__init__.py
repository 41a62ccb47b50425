"""Measures of a model on a whole split, exact at any batch size and device count."""
