"""Data sets checked and written, for training to read: what `vit data` does."""
