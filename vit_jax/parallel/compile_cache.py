"""Compiled programs are kept from one run to the next, in `.jax_cache` beside the work folders.

`JAX_COMPILATION_CACHE_DIR` names another place; empty, it keeps nothing.
"""

import hashlib
import os
from pathlib import Path

import jax

WORTH_KEEPING = 0.3  # seconds of compiling


def keep_compiled(workdir: str | Path) -> None:
    """Keeps what this process compiles for runs with the same parent folder."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or "://" in str(workdir):
        return
    place = Path(workdir).absolute().parent / ".jax_cache"
    jax.config.update("jax_compilation_cache_dir", str(place / _processor()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH_KEEPING)


def _processor() -> str:
    """One name for machines whose CPUs have the same instructions: programs for a CPU are machine
    code, and a shared folder is seen from others."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "any"
    told = sorted({line for line in lines if line.startswith(("flags", "Features"))})
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]
