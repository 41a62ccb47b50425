"""A job on Kubernetes: an Indexed Job with a headless Service, or a JobSet, as data structures that
are printed as YAML or applied with the `kubernetes` client.

Every pod runs the same `vit` line. Process 0 is the pod of index 0, found by its host name; on TPU
node pools GKE tells the processes of each other.
"""

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_jax.errors import RESTART, WATCHDOG, UserError, printable

from . import names
from .job import PORT, Job, cpu_devices, shipped
from .names import checked

Manifest = dict[str, Any]

# type: the label of GKE's node pools. Four chips a host, or as many as the topology has.
TPUS = {
    "v4": "tpu-v4-podslice", "v5e": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}  # fmt: skip
CHIPS = 4
# After these a pod's job goes on: `vit` asks for it, or a signal ended it (of the system, mostly).
AGAIN = [RESTART, WATCHDOG, *(128 + number for number in (6, 9, 11, 15))]
SAVE = 300  # seconds between SIGTERM and SIGKILL
RECIPES = "/recipe"  # where a recipe of the user's own is in the container
MOST = 2**20  # bytes of a ConfigMap
WAIT = 60.0  # seconds for an old job to be gone
FIELD_MANAGER = "vit-launch"


def manifests(
    job: Job, *, namespace: str = "default", nodes: Mapping[str, str] | None = None,
    tpu: str | None = None, jobset: bool = False, slices: int = 1,
) -> list[Manifest]:  # fmt: skip
    """What the job is made of, the job itself last.

    `nodes` are labels that its nodes must have. `tpu` is TYPE:TOPOLOGY, such as v5e:4x4, and
    decides the number of processes; `slices` such slices are one JobSet. Raises UserError.
    """
    _check(job, namespace, nodes or {}, slices)
    labels = {"app.kubernetes.io/name": "vit-jax", "app.kubernetes.io/instance": job.name}
    about = {"name": job.name, "namespace": namespace, "labels": labels}
    if not jobset and slices > 1:
        raise UserError("several slices are one job as a JobSet alone: --jobset")
    if slices > 1 and tpu is None:
        raise UserError("--slices counts TPU slices: name one with --tpu, such as --tpu=v5e:4x4")
    chips, hosts, selector = _tpu(tpu) if tpu else (None, job.processes, {})
    recipe, arguments = shipped(job, RECIPES)
    first = f"{job.name}-slice-0-0" if jobset else f"{job.name}-0"
    env = dict(job.environment)
    if chips is None and job.processes > 1:
        env["JAX_COORDINATOR_ADDRESS"] = f"{first}.{job.name}:{PORT}"
        env["JAX_NUM_PROCESSES"] = str(job.processes)  # which one: JOB_COMPLETION_INDEX
    if chips is None and (job.platform == "cpu" or not job.devices):
        env |= cpu_devices(env, job.devices or 1)
    devices = {"google.com/tpu": chips} if chips else (
        {"nvidia.com/gpu": job.devices} if job.devices and job.platform != "cpu" else {}
    )  # fmt: skip
    sizes = {"cpu": job.cpus, "memory": job.memory} | devices
    resources = {key: str(value) for key, value in sizes.items() if value is not None}
    mounts = [(f"claim-{i}", {"persistentVolumeClaim": {"claimName": claim}},
               names.place("PATH of --volume", path))
              for i, (claim, path) in enumerate(job.volumes)]  # fmt: skip
    # Data workers and NCCL share memory through it; the default is 64 MiB.
    mounts.append(("shared-memory", {"emptyDir": {"medium": "Memory"}}, "/dev/shm"))
    if recipe is not None:
        mounts.append(("recipe", {"configMap": {"name": job.name}}, RECIPES))
    paths = [path for *_, path in mounts]
    if doubled := sorted({path for path in paths if paths.count(path) > 1}):
        raise UserError(f"{doubled[0]} is mounted twice: give --volume another PATH")
    pod = {
        "restartPolicy": "Never",
        "subdomain": job.name,
        "terminationGracePeriodSeconds": SAVE,
        "nodeSelector": {**selector, **(nodes or {})},
        "tolerations": [{"key": key, "operator": "Exists"} for key in devices],
        "containers": [{
            "name": "vit",
            "image": job.image,
            "command": ["vit", *(_as_typed("the argument", argument) for argument in arguments)],
            "env": [{"name": key, "value": _as_typed(key, value)} for key, value in env.items()],
            "ports": [{"containerPort": PORT}],
            "resources": {"limits": resources, "requests": resources},
            "volumeMounts": [{"name": name, "mountPath": path} for name, _, path in mounts],
        }],
        "volumes": [{"name": name, **source} for name, source, _ in mounts],
    }  # fmt: skip
    spec = {
        "completionMode": "Indexed",
        "completions": hosts,
        "parallelism": hosts,
        # One process that is gone ends all. A JobSet then starts all of them together again.
        "backoffLimit": 0 if jobset else job.restarts * hosts,
        "podFailurePolicy": {"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget",
                                                      "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "vit", "operator": "NotIn",
                                                  "values": AGAIN}},
        ]},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }  # fmt: skip
    if job.time_limit is not None:
        spec["activeDeadlineSeconds"] = math.ceil(job.time_limit * 60)
    made: list[Manifest] = []
    if recipe is not None:
        key = checked("the recipe's file name", recipe.name)
        made.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": about,
                     "data": {key: _text_of(recipe)}})  # fmt: skip
    if jobset:
        made.append(_jobset(about, spec, slices, job.restarts, tpu is not None))
        return made
    made.append({
        "apiVersion": "v1", "kind": "Service", "metadata": about,
        # Without an address of its own, and also for pods that are still starting.
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True,
                 "selector": {"app.kubernetes.io/instance": job.name},
                 "ports": [{"name": "coordinator", "port": PORT}]},
    })  # fmt: skip
    made.append({"apiVersion": "batch/v1", "kind": "Job", "metadata": about, "spec": spec})
    return made


def _check(job: Job, namespace: str, nodes: Mapping[str, str], slices: int) -> None:
    """Refuses names that an API server would refuse."""
    checked("the job's name", job.name)
    checked("--namespace", namespace)
    checked("--image", str(job.image))
    for claim, _ in job.volumes:
        checked("--volume", claim)
    for label, value in nodes.items():
        checked("--node", label)
        checked("the value of --node", value)
    if slices < 1:
        raise UserError(f"--slices is 1 or more, not {slices}")


def _as_typed(what: str, value: str) -> str:
    """A text as the container is to have it. The kubelet puts variables for `$(NAME)` in arguments
    and environments, and `$` for `$$`."""
    return names.text(what, value).replace("$", "$$")


def _text_of(recipe: Path) -> str:
    try:
        text = names.text("the recipe", recipe.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {recipe} cannot go into a ConfigMap: {error}") from error
    if len(text.encode()) > MOST:
        raise UserError(f"recipe {recipe} is over {MOST:,} bytes, the most of a ConfigMap")
    return text


def _jobset(about: Manifest, spec: Manifest, slices: int, restarts: int, tpu: bool) -> Manifest:
    """Of one replica a slice; it makes the Service itself."""
    # A node pool of TPUs is a slice: one replica each.
    only = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet",
        "metadata": about | ({"annotations": only} if tpu else {}),
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": about["name"],
                        "publishNotReadyAddresses": True},
            "failurePolicy": {"maxRestarts": restarts, "rules": [
                {"name": "error", "action": "FailJobSet",
                 "onJobFailureReasons": ["PodFailurePolicy", "DeadlineExceeded"]},
            ]},
            "replicatedJobs": [{"name": "slice", "replicas": slices,
                                "template": {"spec": spec}}],
        },
    }  # fmt: skip


def _tpu(text: str) -> tuple[int, int, dict[str, str]]:
    """(chips a host, hosts, labels of the nodes) of TYPE:TOPOLOGY."""
    kind, _, topology = text.partition(":")
    if kind not in TPUS or not re.fullmatch("[1-9][0-9]*(x[1-9][0-9]*)*", topology):
        raise UserError(
            f"--tpu={text} is no TYPE:TOPOLOGY, such as v5e:4x4 or v5p:2x2x4; types: "
            + ", ".join(TPUS)
        )
    count = math.prod(map(int, topology.split("x")))
    chips = min(CHIPS, count)
    if count % chips:
        raise UserError(f"--tpu={text}: {count} chips are no whole hosts of {chips}")
    return chips, count // chips, {
        "cloud.google.com/gke-tpu-accelerator": TPUS[kind],
        "cloud.google.com/gke-tpu-topology": topology,
    }  # fmt: skip


def as_yaml(made: Sequence[Manifest]) -> str:
    """The manifests as one stream, for `kubectl apply -f -`."""
    import yaml

    plain = json.loads(json.dumps(made))  # the parts that manifests share, written out
    return "".join("---\n" + yaml.safe_dump(one, sort_keys=False, width=1000) for one in plain)


def apply(made: Sequence[Manifest]) -> str:
    """Applies them to the cluster of the current context; says what was done. A job of that name
    that runs is left alone, one that is over is replaced.

    Raises UserError: no client, no cluster, or what the cluster says against it.
    """
    try:
        from kubernetes import client, config, dynamic
        from kubernetes.dynamic.exceptions import DynamicApiError, ResourceNotFoundError
    except ImportError as error:
        raise UserError(
            "vit launch kubernetes needs its client: pip install 'vit_jax[kubernetes]', or "
            "vit launch kubernetes --dry-run … | kubectl apply -f -"
        ) from error
    try:
        config.load_config()
        cluster = dynamic.DynamicClient(client.ApiClient())
        *parts, job = made
        kind = cluster.resources.get(api_version=job["apiVersion"], kind=job["kind"])
        if not _away(kind, job["metadata"]["name"], job["metadata"]["namespace"]):
            return f"{job['metadata']['name']} runs already"
        for part in parts:
            of = cluster.resources.get(api_version=part["apiVersion"], kind=part["kind"])
            of.server_side_apply(body=part, namespace=part["metadata"]["namespace"],
                                 field_manager=FIELD_MANAGER)  # fmt: skip
        kind.create(body=job, namespace=job["metadata"]["namespace"])
    except ResourceNotFoundError as error:
        raise UserError(
            f"this cluster knows no {job['kind']} ({job['apiVersion']})"
            + (": install JobSet, or leave out --jobset" if job["kind"] == "JobSet" else "")
        ) from error
    except config.ConfigException as error:
        raise UserError(f"no Kubernetes cluster is configured here: {printable(error)}") from error
    except DynamicApiError as error:
        raise UserError(f"Kubernetes refused the job: {printable(error.summary())}") from error
    except Exception as error:  # of the connection: urllib3's
        if "Max retries" not in str(error):
            raise
        raise UserError(
            f"the Kubernetes cluster does not answer: {printable(str(error)[:200])}"
        ) from error
    return f"{job['metadata']['name']}: {job['kind']} created"


def _away(kind: Any, name: str, namespace: str) -> bool:
    """Removes a job that is over; False where it still runs."""
    from kubernetes.dynamic.exceptions import NotFoundError

    end = time.monotonic() + WAIT
    deleted = False
    while time.monotonic() < end:
        try:
            found = kind.get(name=name, namespace=namespace).to_dict()
        except NotFoundError:
            return True
        over = {"Complete", "Completed", "Failed"}
        if not any(c["type"] in over and c["status"] == "True"
                   for c in found.get("status", {}).get("conditions") or ()):  # fmt: skip
            return False
        if not deleted:
            kind.delete(name=name, namespace=namespace, body={"propagationPolicy": "Background"})
            deleted = True
        else:
            time.sleep(1.0)
    raise UserError(f"the last job {name} is over but does not go away: kubectl delete it")
