"""A job on one Cloud TPU slice, as a script of `gcloud` commands that is printed or run: the slice
is asked for as a queued resource, waited for, and every host runs a container.

Several slices, and node pools of GKE, are for kubernetes.py.
"""

import shlex
import shutil
import subprocess

from vit_jax.errors import UserError

from .job import AGAIN, Job, shipped

RECIPES = "/tmp/recipe"  # on the hosts and in the containers
# Of the software on a host, by the beginning of an accelerator's name.
RUNTIMES = {
    "v5litepod": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e",
    "v4": "tpu-ubuntu2204-base", "v3": "tpu-ubuntu2204-base", "v2": "tpu-ubuntu2204-base",
}  # fmt: skip

SCRIPT = """\
#!/usr/bin/env bash
set -euo pipefail
state() {{ {queue} describe {name} {place} --format='value(state.state)' 2>/dev/null || true; }}

# A slice that was taken away leaves its name behind.
case "$(state)" in FAILED|SUSPENDED) {queue} delete {name} {place} --force --quiet;; esac
[ -n "$(state)" ] || {queue} create {name} --node-id={name} {place} {what}
until [ "$(state)" = ACTIVE ]; do
  case "$(state)" in FAILED|SUSPENDED) echo "{name}: $(state)" >&2; exit {again};; esac
  sleep 30
done
{prepare}{vm} ssh {name} {place} --worker=all --command={run}
# The slice stays, and costs, until: {queue} delete {name} {place} --force
"""

# A host goes on by itself where that is of use; the processes then find each other again.
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
    """The script; `setup` is a command that every host runs first. Raises UserError where there
    is no runtime known for the accelerator."""
    runtime = runtime or next(
        (found for prefix, found in RUNTIMES.items() if accelerator.startswith(f"{prefix}-")), None
    )
    if runtime is None:
        raise UserError(
            f"no runtime known for --accelerator={accelerator}: name it with --runtime, or an "
            f"accelerator such as {', '.join(f'{name}-16' for name in RUNTIMES)}"
        )
    place = f"--zone={shlex.quote(zone)}" + (
        f" --project={shlex.quote(project)}" if project else ""
    )
    vm = "gcloud compute tpus tpu-vm"
    on_all = f"{job.name} {place} --worker=all"
    recipe, arguments = shipped(job, RECIPES)
    mounts = [f"{source}:{path}" for source, path in job.volumes]
    prepare = []
    if setup:
        prepare.append(f"{vm} ssh {on_all} --command={shlex.quote(setup)}")
    if recipe is not None:
        mounts.append(f"{RECIPES}:{RECIPES}:ro")
        make = shlex.quote(f"mkdir -p {RECIPES}")
        prepare += [
            f"{vm} ssh {on_all} --command={make}",
            f"{vm} scp {shlex.quote(str(recipe))} {job.name}:{RECIPES}/ {place} --worker=all",
        ]
    docker = shlex.join([
        "sudo", "docker", "run", "--rm", "--privileged", "--net=host",
        *(f"--volume={mount}" for mount in mounts),
        *(f"--env={key}={value}" for key, value in job.environment.items()),
        str(job.image), "vit", *arguments,
    ])  # fmt: skip
    codes = [*AGAIN, *(128 + number for number in (6, 9, 11, 15))]
    loop = LOOP.format(restarts=job.restarts, docker=docker, again="|".join(map(str, codes)))
    return SCRIPT.format(
        queue="gcloud compute tpus queued-resources", vm=vm, name=job.name, place=place,
        what=f"--accelerator-type={shlex.quote(accelerator)} --runtime-version={runtime}"
        + (" --spot" if spot else ""),
        again=AGAIN[0], prepare="".join(f"{line}\n" for line in prepare), run=shlex.quote(loop),
    )  # fmt: skip


def run(text: str) -> int:
    """Runs the script in the foreground; its exit code. Raises UserError where there is no
    gcloud."""
    if shutil.which("gcloud") is None:
        raise UserError(
            "gcloud is not on the path: install the Google Cloud SDK, or see the commands with "
            "--dry-run"
        )
    return subprocess.run(["bash", "-c", text], check=False).returncode
