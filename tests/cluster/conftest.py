"""These tests start SLURM's daemons, as root, and wait minutes for it: `make test-cluster`."""

import os

if "TEST_CLUSTER" not in os.environ:
    collect_ignore_glob = ["test_*.py"]
