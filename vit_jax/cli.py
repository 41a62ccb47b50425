"""`vit`: finds the command, prints an error as one line, and exits with the code that fits.

Nothing heavy is imported before the command is known. This file must parse on Pythons older than
the package supports, so that it can tell the user.
"""

import errno
import os
import sys

from vit_jax import process

# command: what it does, as `vit --help` says it
COMMANDS = {
    "train": "train, continue or fine-tune a model",
    "evaluate": "measure a checkpoint on a whole split",
    "predict": "classify images with any weights",
    "look": "show what a model sees in images, as a page",
    "report": "show a run as a page: curves, settings, mistakes",
    "inspect": "show what a weights file contains, in any layout",
    "convert": "write weights in another layout",
    "export": "write weights as StableHLO or ONNX, for programs without this package",
    "ckpt": "list, verify, copy, prune and average checkpoints",
    "data": "check data sets, prepare them, list the operations",
    "plan": "estimate memory, speed and cost of a run on any TPU or GPU",
    "describe": "show what a config resolves to, without training",
    "launch": "start a command on many processes, here or on a cluster",
    "runs": "list runs: status, last step, best metric, goodput",
    "sweep": "train a recipe over a space of its keys",
    "study": "compare architectures at equal compute",
    "compare": "show several runs in one picture, and how they differ",
    "compare-curve": "find the step where a run leaves a reference curve",
    "bench": "measure parts of a run on this machine",
    "doctor": "show versions and devices, and check that they work",
}

_LIST = "\n".join(f"  {name:14} {purpose}" for name, purpose in COMMANDS.items())

USAGE = f"""usage: vit COMMAND [options]

Trains Vision Transformers in JAX.

commands:
{_LIST}

vit COMMAND --help shows a command's options. Configs take overrides: --config.optimizer.lr=1e-3
"""

# Errors of the machine, not of the code.
REFUSED = {
    errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
    errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ELOOP, errno.ENAMETOOLONG,
}  # fmt: skip
OUT_OF_THREADS = ("can't start new thread", "Cannot allocate memory")

# What makes a command need less memory of a device.
LESS_MEMORY = {
    "train": "a smaller --config.microbatch or --config.batch_size, --config.model.remat=full, or "
    "parameters spread over devices (--config.mesh.fsdp)",
    "evaluate": "a smaller --config.eval_batch_size, or more devices",
    "predict": "a smaller --batch-size",
    "look": "fewer images at a time",
}


def entry():
    """The console script."""
    process.prepare(sys.argv[1] if len(sys.argv) > 1 else "")
    process.let_interrupts_end_imports()
    try:
        try:
            code = main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # `vit … | head -1`: nobody reads the output any more
        import signal

        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        code = 128 + signal.SIGPIPE
    if code:
        process.leave(code)


def main(argv=None):
    """Runs one command and returns its exit code."""
    command, *arguments = list(sys.argv[1:] if argv is None else argv) or ["help"]
    if command in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    problem = process.version_error()
    if problem:
        print("vit: error: " + problem, file=sys.stderr)
        return 2
    process.quiet_libraries()
    try:
        return _run(command, arguments)
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        return _end(command, error)


def _run(command, arguments):
    import importlib

    from vit_jax import __version__, errors
    from vit_jax.commands.arguments import command_line

    if command == "--version":
        print(__version__)
        return errors.OK
    if command not in COMMANDS:
        nearest = errors.nearest(command, COMMANDS)
        raise errors.UserError(f"unknown command {command!r}: {nearest}")
    module = importlib.import_module(f"vit_jax.commands.{command.replace('-', '_')}")
    return module.run(command_line(command, module, arguments)) or errors.OK


def _end(command, error):
    """Prints the line of an error and returns its exit code. A fault of the code keeps its
    traceback."""
    from vit_jax import errors

    line, code = _line_and_code(command, error)
    if line is not None:
        print(f"vit: {line}", file=sys.stderr)
        if isinstance(error, (errors.UserError, errors.Stopped)):
            _leave_job()
        return code
    if not _leave_job():
        raise error
    import traceback

    traceback.print_exception(error)
    return code


def _line_and_code(command, error):
    """What an error becomes: (its line, None for a fault of the code; the exit code)."""
    from vit_jax import errors

    first = str(error).partition("\n")[0]
    if isinstance(error, errors.UserError):
        return f"error: {errors.printable_lines(error)}", errors.USER_ERROR
    if isinstance(error, errors.Stopped):
        return errors.printable_lines(error), error.code
    if isinstance(error, KeyboardInterrupt):
        return "stopped at once", errors.INTERRUPTED
    if isinstance(error, OSError) and error.errno in REFUSED:
        path = errors.file_of(error)
        where = f"cannot read or write {errors.printable(path)}" if path else "cannot use a file"
        too_many = error.errno in (errno.EMFILE, errno.ENFILE)
        remedy = f"; {errors.FILES_REMEDY}" if too_many else ""
        return f"error: {where}: {error.strerror}{remedy}", errors.USER_ERROR
    from vit_jax.parallel.runtime import lost_peer, no_device

    missing = no_device(error)
    if missing:
        return f"error: {missing}", errors.USER_ERROR
    peer = lost_peer(error)
    if peer:
        return peer, errors.RESTART
    if any(sign in str(error) for sign in OUT_OF_THREADS):
        reason = f"{errors.NO_THREAD}, or there is no memory for them ({first[:200]})"
        return f"error: {reason}: {errors.MEMORY_REMEDY}", errors.USER_ERROR
    if "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError):
        reason = first.removeprefix("RESOURCE_EXHAUSTED: ")[:200] or "no memory"
        less = LESS_MEMORY.get(command, "more memory")
        return f"error: {reason}; what would work: {less}", errors.USER_ERROR
    return None, 1


def _leave_job():
    """If this process is one of a job, waits a moment for the others to leave too. Returns whether
    it is."""
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return False
    from vit_jax.parallel.runtime import leave_together

    leave_together()
    return True


if __name__ == "__main__":
    entry()
