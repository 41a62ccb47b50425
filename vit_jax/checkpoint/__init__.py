"""States on disk: saving, continuing, and starting from another run's parameters."""
