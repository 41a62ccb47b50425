"""`vit`: finds the command, says what was wrong in one line, and exits with the code that fits.

Nothing heavy is imported before a command is chosen. This file must parse on Pythons older than
those that run the rest, to be able to tell them.
"""

import errno
import os
import sys

OLDEST_PYTHON, OLDEST_JAX = (3, 11), (0, 10)

# command: what it does, in the words of `vit --help`
COMMANDS = {
    "train": "train, continue or fine-tune a model",
    "evaluate": "measure a checkpoint on a whole split",
    "predict": "classify images with any weights",
    "inspect": "show what weights of any layout hold",
    "convert": "write weights in another layout",
    "ckpt": "list, verify, copy, prune a run's checkpoints",
    "data": "check data sets, prepare them, list the operations",
    "plan": "say what a run takes of a machine that need not be here",
    "describe": "show what a config resolves to, without training",
    "launch": "start a command on many processes, here or on a cluster",
    "runs": "list runs: status, last step, best metric, goodput",
    "sweep": "train a recipe over a space of its keys",
    "compare": "show several runs in one picture, and how they differ",
    "compare-curve": "say where a run leaves a reference",
    "bench": "measure parts of a run on this machine",
    "doctor": "show versions and devices, and check that they work",
}

_LIST = "\n".join(f"  {name:14} {what}" for name, what in COMMANDS.items())

# What the machine refuses, and not because of a mistake in the code.
REFUSED = {
    errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
    errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ELOOP, errno.ENAMETOOLONG,
}  # fmt: skip

USAGE = f"""usage: vit COMMAND [options]

Trains Vision Transformers in JAX.

commands:
{_LIST}

vit COMMAND --help shows a command's options. Configs take overrides: --config.optimizer.lr=1e-3
"""


def check_versions():
    """One line where Python or JAX is too old for the package; None where they will do."""
    python, jax = (".".join(map(str, v)) for v in (OLDEST_PYTHON, OLDEST_JAX))
    wanted = f"vit_jax needs Python {python} and JAX {jax} or newer"
    if sys.version_info < OLDEST_PYTHON:
        return f"{wanted}; this is Python {sys.version_info[0]}.{sys.version_info[1]}"
    from importlib import metadata

    try:
        found = metadata.version("jax")
    except metadata.PackageNotFoundError:
        return f"{wanted}; JAX is not installed (pip install jax)"
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST_JAX:
        return f"{wanted}; this is JAX {found} (pip install --upgrade jax)"
    return None


def main(argv=None):
    """Runs one command and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    problem = check_versions()
    if problem:
        print("vit: error: " + problem, file=sys.stderr)
        return 2
    return _run(arguments[0], arguments[1:])


# XLA's CPU back end takes and gives back its temporaries at every step. With huge pages, kept by
# the process once they are there, a step spends no time in the kernel (benchmarks/huge_pages.py).
# glibc reads this at the start of a process alone, hence the second start below.
MALLOC = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=0x800000000:"
    "glibc.malloc.top_pad=0x10000000"
)


def _look_for_no_tpu():
    """Where libtpu is installed for plans alone, JAX would look for a TPU at every start, and its
    library complain at length that there is none."""
    import glob
    import importlib.util

    devices = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/*")
    plans, gpus = (importlib.util.find_spec(name) for name in ("libtpu", "jax_plugins"))
    if plans and not gpus and not devices:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


def _threads_for_virtual_devices():
    """XLA's CPU back end has one pool of threads, as many as cores or devices, for all its virtual
    devices. A device that takes two of them for two collectives at once leaves another one without,
    and all wait for ever. The size of the pool is read from NPROC."""
    import re

    flags = os.environ.get("XLA_FLAGS", "")
    devices = re.findall(r"--xla_force_host_platform_device_count=(\d+)", flags)
    if devices and not os.environ.get("NPROC"):
        os.environ["NPROC"] = str(max(os.cpu_count() or 1, 3 * int(devices[-1])))


def _start_again(**settings):
    """This program anew, with settings that are read at the start of a process alone."""
    arguments = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, arguments, dict(os.environ, **settings))


def _in_any_locale():
    """Names of files and classes are UTF-8, whatever the locale says; what an output cannot show
    is escaped."""
    if sys.getfilesystemencoding() != "utf-8" and sys.version_info >= OLDEST_PYTHON:
        _start_again(PYTHONUTF8="1")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def entry():
    """The console script. A run that failed leaves without the interpreter's farewell, in which
    background threads of libraries would tell the same error again."""
    import signal

    _look_for_no_tpu()
    _threads_for_virtual_devices()
    _in_any_locale()
    computes = (
        sys.argv[1:2] in (["train"], ["evaluate"], ["predict"], ["bench"])
        and sys.platform == "linux"
    )
    if computes and "GLIBC_TUNABLES" not in os.environ and not check_versions():
        _start_again(GLIBC_TUNABLES=MALLOC)
    # Workers for data are started as `python -c`, which would find modules in the current folder
    # first: a queue.py there would be run in place of the standard library's.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    try:
        try:
            code = main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # `vit … | head -1`: its reader has left
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        code = 128 + signal.SIGPIPE
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _quiet_libraries():
    """Orbax raises a failed save to us; it need not also print it from its threads."""
    import logging
    import threading

    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    tell = threading.excepthook

    def hook(failed):
        if "orbax" not in type(failed.thread).__module__:
            tell(failed)

    threading.excepthook = hook
    tell_ignored = sys.unraisablehook

    def ignored(failed):  # TensorStore's callbacks after a failed save
        if str(failed.exc_value) != "Event loop is closed":
            tell_ignored(failed)

    sys.unraisablehook = ignored


# What takes less of a device's memory.
_LESS = {
    "train": "a smaller --config.microbatch or --config.batch_size, --config.model.remat=full, or "
    "parameters spread over devices (--config.mesh.fsdp)",
    "evaluate": "a smaller --config.eval_batch_size, or more devices",
    "predict": "a smaller --batch-size",
}


def _leave():
    """In a job, gives the others a moment to leave too; whether there is one."""
    if "jax" not in sys.modules:
        return False
    import jax

    if not jax.distributed.is_initialized():
        return False
    from vit_jax.parallel.runtime import leave_together

    leave_together()
    return True


def _refused(error):
    """The line for an OSError that no part of the code has told of."""
    from vit_jax import errors

    files = error.errno in (errno.EMFILE, errno.ENFILE)
    where = errors.file_of(error)
    what = f"cannot read or write {errors.printable(where)}" if where else "a file cannot be used"
    return f"{what}: {error.strerror}{'; ' + errors.FILES_REMEDY if files else ''}"


def _run(command, arguments):
    import importlib
    import traceback

    _quiet_libraries()
    from vit_jax import errors
    from vit_jax.commands.arguments import command_line

    try:
        if command == "--version":
            import vit_jax

            print(vit_jax.__version__)
            return errors.OK
        if command not in COMMANDS:
            nearest = errors.nearest(command, COMMANDS)
            raise errors.UserError(f"unknown command {command!r}: {nearest}")
        module = importlib.import_module(f"vit_jax.commands.{command.replace('-', '_')}")
        return module.run(command_line(command, module, arguments)) or errors.OK
    except errors.UserError as error:
        print(f"vit: error: {errors.printable_lines(error)}", file=sys.stderr)
        _leave()
        return errors.USER_ERROR
    except errors.Stopped as stopped:
        print(f"vit: {errors.printable_lines(stopped)}", file=sys.stderr)
        _leave()
        return stopped.code
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        print("vit: stopped at once", file=sys.stderr)
        return errors.INTERRUPTED
    except Exception as error:
        from vit_jax.parallel.runtime import lost_peer

        if isinstance(error, OSError) and error.errno in REFUSED:
            print("vit: error: " + _refused(error), file=sys.stderr)
            return errors.USER_ERROR
        if line := lost_peer(error):
            print(f"vit: {line}", file=sys.stderr)
            return errors.RESTART
        if "can't start new thread" in str(error) or "Cannot allocate memory" in str(error):
            reason = str(error).partition("\n")[0][:200]
            print(f"vit: error: {errors.NO_THREAD}, or there is no memory for them ({reason}): "
                  f"{errors.MEMORY_REMEDY}", file=sys.stderr)  # fmt: skip
            return errors.USER_ERROR
        if "RESOURCE_EXHAUSTED" not in str(error) and not isinstance(error, MemoryError):
            if not _leave():
                raise
            traceback.print_exc()
            return 1
        reason = str(error).partition("\n")[0].removeprefix("RESOURCE_EXHAUSTED: ") or "no memory"
        less = _LESS.get(command, "more memory")
        print(f"vit: error: {reason[:200]}; what would work: {less}", file=sys.stderr)
        return errors.USER_ERROR


if __name__ == "__main__":
    entry()
