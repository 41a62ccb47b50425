"""Compiles a run's real step for machines that need not be there, and reads what it will cost."""
