"""Published weights: where they are, fetching them, and reading and writing their formats."""
