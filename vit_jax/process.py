"""Settings that Python, glibc, JAX and XLA read only once, at the start of the process.

This file must parse on Pythons older than the package supports: it tells the user that theirs is
too old.
"""

import os
import sys

OLDEST_PYTHON, OLDEST_JAX = (3, 11), (0, 10)

# XLA's CPU back end allocates and frees its temporaries at every step. With huge pages that the
# process keeps, a step spends no time in the kernel (benchmarks/huge_pages.py). glibc reads this
# variable only when a process starts, so `prepare` starts the process a second time.
MALLOC = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=0x800000000:"
    "glibc.malloc.top_pad=0x10000000"
)
# The share of a GPU's memory that JAX takes at the start. Its own default, 0.75, leaves a quarter
# unused; what is left here is for CUDA, cuDNN and NCCL.
GPU_MEMORY = "0.92"
COMPUTING = ("train", "evaluate", "predict", "bench")  # the commands that MALLOC makes faster


def version_error():
    """One line that says that Python or JAX is too old; None if the package supports both."""
    python, jax = (".".join(map(str, version)) for version in (OLDEST_PYTHON, OLDEST_JAX))
    wanted = f"vit_jax needs Python {python} and JAX {jax} or newer"
    if sys.version_info < OLDEST_PYTHON:
        return f"{wanted}; this is Python {sys.version_info[0]}.{sys.version_info[1]}"
    from importlib import metadata

    try:
        installed = metadata.version("jax")
    except metadata.PackageNotFoundError:
        return f"{wanted}; JAX is not installed (pip install jax)"
    if tuple(int(part) for part in installed.split(".")[:2]) < OLDEST_JAX:
        return f"{wanted}; this is JAX {installed} (pip install --upgrade jax)"
    return None


def let_interrupts_end_imports():
    """Ctrl-C inside an import ends the process at once. Elsewhere it raises KeyboardInterrupt, as
    usual.

    An exception that breaks off an import leaves libraries half loaded, and they fail with a
    traceback. One inside JAX's callback of the garbage collector is printed and lost.
    """
    import signal

    def interrupted(number, frame):
        while frame is not None:
            code = frame.f_code
            if code.co_filename.startswith("<frozen importlib") or "gc_callback" in code.co_name:
                os.write(2, b"vit: stopped at once\n")
                os._exit(128 + number)
            frame = frame.f_back
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupted)


def prepare(command):
    """Prepares this process for a command, before any library is imported.

    It may replace the process by a new one with the same command line.
    """
    _use_the_cpu_where_compilers_have_no_device()
    give_virtual_devices_threads()
    if sys.getfilesystemencoding() != "utf-8" and sys.version_info >= OLDEST_PYTHON:
        _start_again(PYTHONUTF8="1")  # names of files and classes are UTF-8 in every locale
    for stream in (sys.stdout, sys.stderr):  # which escape what the locale cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    allocates = command in COMPUTING and sys.platform == "linux"
    if allocates and "GLIBC_TUNABLES" not in os.environ and not version_error():
        _start_again(GLIBC_TUNABLES=MALLOC)
    if command == "plan":  # XLA warns of what a plan is asked for: that a step does not fit
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if command in COMPUTING:
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", GPU_MEMORY)
    # Worker processes for data are started as `python -c`, which would look for modules in the
    # current folder first: a queue.py there would replace the standard library's.
    os.environ.setdefault("PYTHONSAFEPATH", "1")


def _use_the_cpu_where_compilers_have_no_device():
    """If libtpu or the CUDA wheels are installed only for `vit plan`, JAX would look for a TPU or a
    GPU at every start, and print many lines because there is none."""
    import glob
    import importlib.util
    import pkgutil

    if sys.platform != "linux":
        return
    plugins = importlib.util.find_spec("jax_plugins")
    folders = list(plugins.submodule_search_locations or ()) if plugins else []
    names = {module.name for module in pkgutil.iter_modules(folders)}
    if importlib.util.find_spec("libtpu"):
        names.add("libtpu")
    patterns = ("accel*", "vfio/*", "nvidia*", "nvhost*", "nvgpu*", "dxg", "kfd")
    devices = [found for pattern in patterns for found in glob.glob("/dev/" + pattern)]
    if names and names <= {"libtpu", "xla_cuda12", "xla_cuda13"} and not devices:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")


def give_virtual_devices_threads():
    """Sets NPROC, the size of the thread pool that all virtual CPU devices of XLA share.

    By default the pool has as many threads as there are cores or devices. If one device takes two
    of them for two collectives at once, another device gets none, and all wait forever.
    """
    import re

    flags = os.environ.get("XLA_FLAGS", "")
    devices = re.findall(r"--xla_force_host_platform_device_count=(\d+)", flags)
    if devices and not os.environ.get("NPROC"):
        os.environ["NPROC"] = str(max(os.cpu_count() or 1, 3 * int(devices[-1])))


def _start_again(**environment):
    arguments = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, arguments, dict(os.environ, **environment))


def quiet_libraries():
    """Stops Orbax from printing the error of a failed save, which it also raises to its caller."""
    import logging
    import threading

    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    print_thread_error, print_unraisable = threading.excepthook, sys.unraisablehook

    def thread_failed(failure):
        if "orbax" not in type(failure.thread).__module__:
            print_thread_error(failure)

    def unraisable(failure):  # of TensorStore's callbacks after a failed save
        if str(failure.exc_value) != "Event loop is closed":
            print_unraisable(failure)

    threading.excepthook, sys.unraisablehook = thread_failed, unraisable


def leave(code):
    """Ends a process that failed, without the interpreter's shutdown, in which background threads
    of libraries would print the same error again."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
