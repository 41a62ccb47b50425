"""Runs `vit` commands in children of one warm process, and watches what each of them touches.

A request is a line of JSON on standard input, `{"argv", "cwd", "writes", "env"}`; the answer one on
standard output. A child is this process, forked after the imports and before JAX has a device, so
that a command starts at once and none of them sees what another one did.
"""

import importlib
import json
import os
import pkgutil
import resource
import signal
import sys
import tempfile
import time

STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile",
          "pty.spawn", "os.fork", "os.forkpty", "ctypes.dlopen.user"}  # fmt: skip
CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate",
           "os.chmod", "os.chown", "shutil.rmtree"}  # fmt: skip
WALL = 40  # seconds after which a child hangs


def watch(cwd: str, writes: list[str], found: list[str]) -> None:
    """Notes what a command must not do, whatever it was given: start programs, run code that lies
    in its folder, unpickle, write elsewhere, leave the machine."""
    here = os.path.realpath(cwd)
    kept = [os.environ[name] for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_STATE_HOME")]
    allowed = [os.path.realpath(place) for place in [*writes, *kept, "/dev"]]

    def may_write(path) -> bool:
        if isinstance(path, int):
            return True
        real = os.path.realpath(os.fsdecode(path))
        return any(real == place or real.startswith(place + os.sep) for place in allowed)

    def hook(event: str, arguments: tuple) -> None:
        if event in STARTS:
            found.append(f"{event} {arguments[:2]}")
        elif event == "pickle.find_class":
            found.append(f"{event} {arguments}")
        elif event == "exec":
            file = getattr(arguments[0], "co_filename", "")
            if file.startswith(here + os.sep) or (file == "<string>" and "PWNED" in str(arguments)):
                found.append(f"ran {file}")
        elif event == "open":
            path, mode, flags = arguments
            writing = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            refused = (flags or 0) & os.O_NOFOLLOW and os.path.islink(path)  # the kernel does
            if (
                (writing or (mode and set(mode) & set("wax+")))
                and not refused
                and not may_write(path)
            ):
                found.append(f"wrote {path}")
        elif event in CHANGES:
            path = arguments[1] if event in ("os.link", "os.symlink") else arguments[0]
            if not may_write(path):
                found.append(f"{event} {path}")
        elif event == "socket.connect":
            address = arguments[1]
            if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
                found.append(f"connected to {address}")

    sys.addaudithook(hook)


def child(request: dict, out: int, err: int, report: int) -> None:
    """Runs one command; never returns."""
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    sys.path[:] = [place for place in sys.path if place]
    found: list[str] = []
    watch(request["cwd"], request["writes"], found)
    code = 1
    try:
        from vit_jax import cli

        code = cli.main(request["argv"])
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(report, json.dumps(found).encode(errors="replace"))
        os._exit(code or 0)


def serve(request: dict) -> dict:
    """What became of a command: its exit code, output, seconds of CPU, MiB, and what was noted."""
    with (
        tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err,
        tempfile.TemporaryFile() as report,
    ):  # fmt: skip
        began = time.monotonic()
        pid = os.fork()
        if not pid:
            child(request, out.fileno(), err.fileno(), report.fileno())
        while not (waited := os.wait4(pid, os.WNOHANG))[0]:
            if time.monotonic() - began > WALL:
                os.kill(pid, signal.SIGKILL)
                waited = os.wait4(pid, 0)
                break
            time.sleep(0.01)
        texts = []
        for file in (out, err, report):
            file.seek(0)
            texts.append(file.read().decode(errors="backslashreplace"))
    usage: resource.struct_rusage = waited[2]
    return {
        "code": os.waitstatus_to_exitcode(waited[1]), "out": texts[0], "err": texts[1],
        "cpu": usage.ru_utime + usage.ru_stime, "mib": usage.ru_maxrss / 1024,
        "did": json.loads(texts[2] or "[]"), "wall": time.monotonic() - began,
    }  # fmt: skip


def main() -> None:
    """Imports what commands import, then serves until standard input ends."""
    import vit_jax
    import vit_jax.commands

    for folder in ("commands", "pretrained", "training", "data", "preparing", "checkpoint"):
        package = importlib.import_module(f"vit_jax.{folder}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"vit_jax.{folder}.{module.name}")
    for name in (
        "safetensors.numpy",
        "tensorflow_datasets",
        "PIL.Image",
        "http.client",
        "jax.numpy",
    ):
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps({"ready": vit_jax.__version__}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
