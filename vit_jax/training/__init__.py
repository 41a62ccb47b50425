"""One training run: its state, its step, its loop and what it tells."""
