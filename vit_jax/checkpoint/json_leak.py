"""TensorStore frees nothing that it hands to Python as JSON (0.1.86 and before).

At every save Orbax asks it for a folder's description once an array, and for counters that are told
to `jax.monitoring` alone: 0.3 kB an array and 13 kB that a run never gets back. Once `spare` was
called, a folder's description is made once, and the counters are left alone.
"""

import copy
import functools
from typing import Any

import tensorstore
from orbax.checkpoint._src.serialization import tensorstore_utils as orbax


@functools.cache
def spare() -> None:
    """Keeps the process from growing by its saves; once is enough."""
    plain = tensorstore.KvStore.Spec.to_json
    last: tuple[str, Any] = "", None

    @functools.wraps(plain)
    def to_json(self: Any, *options: Any, **named: Any) -> Any:
        nonlocal last
        name, found = repr((self, options, named)), last  # which another thread may change
        if found[0] != name:
            last = found = name, plain(self, *options, **named)
        return copy.deepcopy(found[1])

    tensorstore.KvStore.Spec.to_json = to_json  # type: ignore[method-assign]
    orbax.get_tensorstore_raw_bytes = lambda direction=None: 0
