"""Real processes on one machine: together they feed the global batches of a single one."""

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.xla_flags import xla_flags

pytestmark = pytest.mark.long

HERE = Path(__file__).parent
EPOCH, BATCH = 40, 8

SCRIPT = """
import sys
import jax, numpy as np
from jax.sharding import NamedSharding

if __name__ == "__main__":
    sys.path[:0] = sys.argv[5:]
    from numbered import numbered, training
    from vit_jax.data.pipeline import rows_of_process
    from vit_jax.parallel.mesh import make_mesh
    from vit_jax.parallel.sharding import BATCH

    port, count, index, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index, initialization_timeout=60)
    fsdp = min(count, 2)
    mesh = make_mesh((jax.device_count() // fsdp, fsdp, 1))
    rows = rows_of_process(NamedSharding(mesh, BATCH), 8)
    for workers in (0, 2):
        batches = training(numbered(40), batch_size=8, rows=rows, steps=10, workers=workers)
        arrays = {f"{name}{n}": b[name] for n, b in enumerate(batches) for name in b}
        np.savez(f"{out}/{index}-{workers}.npz", rows=rows, **arrays)
    jax.distributed.shutdown()
"""


def global_batches(folder: Path, processes: int, workers: int) -> list[dict[str, np.ndarray]]:
    """What the processes made, put back into the rows of the global batch."""
    whole: list[dict[str, np.ndarray]] = [{} for _ in range(10)]
    for index in range(processes):
        with np.load(folder / f"{index}-{workers}.npz") as part:
            for n, batch in enumerate(whole):
                for name in ("image", "label", "id"):
                    rows = part[f"{name}{n}"]
                    shape = (BATCH, *rows.shape[1:])
                    batch.setdefault(name, np.full(shape, 99, rows.dtype))[part["rows"]] = rows
    return whole


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of what 1, 2 and 4 processes of two devices each made, with 0 and 2 workers."""
    root = tmp_path_factory.mktemp("processes")
    script = root / "script.py"
    script.write_text(SCRIPT)
    for processes in (1, 2, 4):
        folder = root / str(processes)
        folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {
            "XLA_FLAGS": xla_flags(2), "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(HERE.parents[1]), "PATH": "/usr/bin:/bin", "HOME": str(root),
        }  # fmt: skip
        running = [
            subprocess.Popen(
                [sys.executable, script, str(port), str(processes), str(index), folder,
                 HERE, HERE.parent],
                env=environment, stderr=subprocess.PIPE, text=True,
            )
            for index in range(processes)
        ]  # fmt: skip
        for process in running:
            _, said = process.communicate(timeout=240)
            assert process.returncode == 0, said
    return root


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_global_batches_are_those_of_one_process_and_an_epoch_is_the_data_set(
    made, processes, workers
):
    alone = global_batches(made / "1", 1, 0)
    together = global_batches(made / str(processes), processes, workers)
    for one, other in zip(alone, together, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    ids = np.concatenate([batch["id"] for batch in together]).reshape(2, EPOCH)
    assert all(sorted(epoch) == list(range(EPOCH)) for epoch in ids)
    assert list(ids[0]) != list(ids[1])
