"""A job on one Cloud TPU slice, as a script of `gcloud` commands. The script requests the slice
as a queued resource, waits for it, and starts a container on every host.

kubernetes.py is for several slices and for node pools of GKE.
"""

import shlex
import shutil
import subprocess
from collections.abc import Sequence

from vit_jax.errors import UserError

from . import names
from .job import AGAIN, RESTART_CODES, Job, shipped
from .names import checked

RECIPES = "/tmp/recipe"  # on the hosts and in the containers
# Version of the software on a host, by the beginning of the accelerator's name.
RUNTIMES = {
    "v5litepod": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e",
    "v4": "tpu-ubuntu2204-base", "v3": "tpu-ubuntu2204-base", "v2": "tpu-ubuntu2204-base",
}  # fmt: skip

# Each {part} is a command that _gcloud has quoted, or a name that was checked.
SCRIPT = """\
#!/usr/bin/env bash
set -euo pipefail
state() {{ {describe} 2>/dev/null || true; }}

# A slice that was taken away leaves its name behind.
case "$(state)" in FAILED|SUSPENDED) {delete} --quiet;; esac
[ -n "$(state)" ] || {create}
until [ "$(state)" = ACTIVE ]; do
  case "$(state)" in FAILED|SUSPENDED) echo "{name}: $(state)" >&2; exit {again};; esac
  sleep 30
done
{on_hosts}
# The slice stays, and costs, until: {delete}
"""

# Each host restarts its container if that helps. The processes then find each other again.
LOOP = """\
for left in $(seq {restarts} -1 0); do
  {docker} && exit 0 || code=$?
  case $code in {again}) ;; *) exit $code;; esac
done
exit $code"""


def script(
    job: Job, *, accelerator: str, zone: str, project: str | None = None,
    runtime: str | None = None, spot: bool = False, setup: str | None = None,
) -> str:  # fmt: skip
    """The script. `setup` is a command that every host runs first. Raises UserError: no runtime is
    known for the accelerator, or Cloud TPU would refuse a name."""
    checked("--accelerator", accelerator)
    runtime = runtime or RUNTIMES.get(accelerator.partition("-")[0])
    if runtime is None:
        raise UserError(
            f"no runtime known for --accelerator={accelerator}: name it with --runtime, or an "
            f"accelerator such as {', '.join(f'{name}-16' for name in RUNTIMES)}"
        )
    name, image = checked("the job's name", job.name), checked("--image", str(job.image))
    checked("--runtime", runtime)
    place = [f"--zone={checked('--zone', zone)}"]
    if project is not None:
        place.append(f"--project={checked('--project', project)}")
    recipe, arguments = shipped(job, RECIPES)
    mounts = [f"{names.place('FOLDER of --volume', source)}:{names.place('PATH of --volume', path)}"
              for source, path in job.volumes]  # fmt: skip
    on_hosts = [_on_hosts(name, place, names.text("--setup", setup))] if setup else []
    if recipe is not None:
        mounts.append(f"{RECIPES}:{RECIPES}:ro")
        # An absolute path cannot be taken for an option.
        copied = names.text("the recipe", str(recipe.absolute()))
        on_hosts += [
            _on_hosts(name, place, shlex.join(["mkdir", "-p", RECIPES])),
            _gcloud("tpu-vm", "scp", copied, f"{name}:{RECIPES}/", *place, "--worker=all"),
        ]
    docker = shlex.join([
        "sudo", "docker", "run", "--rm", "--privileged", "--net=host",
        *(f"--volume={mount}" for mount in mounts),
        *(names.text("--env", f"--env={key}={value}") for key, value in job.environment.items()),
        image, "vit", *(names.text("the argument", argument) for argument in arguments),
    ])  # fmt: skip
    again = "|".join(map(str, RESTART_CODES))
    loop = LOOP.format(restarts=job.restarts, docker=docker, again=again)
    on_hosts.append(_on_hosts(name, place, loop))
    return SCRIPT.format(
        describe=_gcloud("queued-resources", "describe", name, *place,
                         "--format=value(state.state)"),
        delete=_gcloud("queued-resources", "delete", name, *place, "--force"),
        create=_gcloud(
            "queued-resources", "create", name, f"--node-id={name}", *place,
            f"--accelerator-type={accelerator}", f"--runtime-version={runtime}",
            *(["--spot"] if spot else []),
        ),
        name=name, again=AGAIN[0], on_hosts="\n".join(on_hosts),
    )  # fmt: skip


def _gcloud(*words: str) -> str:
    """A command of `gcloud compute tpus`, quoted for a shell."""
    return shlex.join(["gcloud", "compute", "tpus", *words])


def _on_hosts(name: str, place: Sequence[str], line: str) -> str:
    """The command that runs a shell line on every host."""
    return _gcloud("tpu-vm", "ssh", name, *place, "--worker=all", f"--command={line}")


def run(text: str) -> int:
    """Runs the script and returns its exit code. Raises UserError: gcloud is not installed."""
    if shutil.which("gcloud") is None:
        raise UserError(
            "gcloud is not on the path: install the Google Cloud SDK, or see the commands with "
            "--dry-run"
        )
    return subprocess.run(["bash", "-c", text], check=False).returncode
