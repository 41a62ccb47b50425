"""Training states on disk: saved, restored, and checked for damage."""
