"""A job on Kubernetes: an Indexed Job with a headless Service, or a JobSet. The manifests (their
template is kubernetes.yaml) are printed as YAML, or applied with the `kubernetes` client.

Every pod runs the same `vit` command. Process 0 is the pod of index 0, found by its host name. On
TPU node pools GKE tells the processes about each other.
"""

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vit_jax.errors import UserError, printable

from . import names
from .job import PORT, RESTART_CODES, Job, cpu_devices, shipped
from .names import checked

Manifest = dict[str, Any]

# Type: the label of GKE's node pools. A host has four chips, or as many as the topology has.
TPUS = {
    "v4": "tpu-v4-podslice", "v5e": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}  # fmt: skip
CHIPS = 4
# A node pool of TPUs is one slice, so each replica of a JobSet gets a pool of its own.
ONE_POOL = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
RECIPES = "/recipe"  # folder of the user's own recipe in the container
MOST = 2**20  # bytes of a ConfigMap
WAIT = 60.0  # seconds until an old job must be gone
ENDED = {"Complete", "Completed", "Failed"}  # conditions of a job or a JobSet


def manifests(
    job: Job, *, namespace: str = "default", nodes: Mapping[str, str] | None = None,
    tpu: str | None = None, jobset: bool = False, slices: int = 1,
) -> list[Manifest]:  # fmt: skip
    """The manifests that make up the job. The job itself is the last one.

    `nodes` are labels that its nodes must have. `tpu` is TYPE:TOPOLOGY, such as v5e:4x4, and
    decides the number of processes. `slices` of them are one JobSet. Raises UserError.
    """
    for what, value in [
        ("the job's name", job.name), ("--namespace", namespace), ("--image", str(job.image)),
        *(("--volume", claim) for claim, _ in job.volumes),
        *(("--node", label) for label in nodes or ()),
        *(("the value of --node", value) for value in (nodes or {}).values()),
    ]:  # fmt: skip
        checked(what, value)
    if slices < 1:
        raise UserError(f"--slices is 1 or more, not {slices}")
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
        env["JAX_NUM_PROCESSES"] = str(job.processes)  # JOB_COMPLETION_INDEX is a process's number
    if chips is None and (job.platform == "cpu" or not job.devices):
        env |= cpu_devices(env, job.devices or 1)
    gpus = None if chips or job.platform == "cpu" else job.devices
    devices = {"google.com/tpu": chips, "nvidia.com/gpu": gpus}
    sizes = {"cpu": job.cpus, "memory": job.memory} | devices
    mounts = _mounts(job, recipe)
    values = {
        "name": job.name, "namespace": namespace, "image": job.image, "port": PORT,
        "annotations": ONE_POOL if tpu else None,
        "recipe": recipe and {checked("the recipe's file name", recipe.name): _text_of(recipe)},
        "restarts": job.restarts, "slices": slices, "hosts": hosts, "again": RESTART_CODES,
        # An Indexed Job replaces single pods. A JobSet starts all pods together again.
        "retries": 0 if jobset else job.restarts * hosts,
        "deadline": None if job.time_limit is None else math.ceil(job.time_limit * 60),
        "nodes": {**selector, **(nodes or {})},
        "tolerations": [{"key": k, "operator": "Exists"} for k, count in devices.items() if count],
        "command": ["vit", *(_as_typed("the argument", argument) for argument in arguments)],
        "env": [{"name": key, "value": _as_typed(key, value)} for key, value in env.items()],
        "resources": {key: str(value) for key, value in sizes.items() if value is not None},
        "mounts": [{"name": name, "mountPath": path} for name, (path, _) in mounts.items()],
        "volumes": [{"name": name, **source} for name, (_, source) in mounts.items()],
    }  # fmt: skip
    templates = yaml.safe_load(Path(__file__).with_name("kubernetes.yaml").read_text("utf-8"))
    values["job"] = _filled(templates["job"], values)
    kinds = ["ConfigMap"] * (recipe is not None) + (["JobSet"] if jobset else ["Service", "Job"])
    return [_filled(templates[kind], values) for kind in kinds]


def _filled(template: Any, values: Mapping[str, Any]) -> Any:
    """A template in which each text `$NAME` is replaced by a value. Values are not looked into."""
    if isinstance(template, str) and template.startswith("$"):
        return values[template[1:]]
    if isinstance(template, list):
        return [_filled(part, values) for part in template]
    if isinstance(template, dict):
        made = {key: _filled(part, values) for key, part in template.items()}
        return {key: value for key, value in made.items() if value is not None}
    return template


def _mounts(job: Job, recipe: Path | None) -> dict[str, tuple[str, Manifest]]:
    """(path in the container, source) of each volume, by name. Raises UserError: a path cannot be
    used, or is used twice."""
    mounts = {
        f"claim-{i}": (names.place("PATH of --volume", path),
                       {"persistentVolumeClaim": {"claimName": claim}})
        for i, (claim, path) in enumerate(job.volumes)
    }  # fmt: skip
    # Data workers and NCCL share memory there. The default size is 64 MiB.
    mounts["shared-memory"] = ("/dev/shm", {"emptyDir": {"medium": "Memory"}})
    if recipe is not None:
        mounts["recipe"] = (RECIPES, {"configMap": {"name": job.name}})
    paths = [path for path, _ in mounts.values()]
    if doubled := sorted({path for path in paths if paths.count(path) > 1}):
        raise UserError(f"{doubled[0]} is mounted twice: give --volume another PATH")
    return mounts


def _as_typed(what: str, value: str) -> str:
    """A text that the container gets as it was typed. The kubelet replaces `$(NAME)` in arguments
    and environments by variables, and `$$` by `$`."""
    return names.text(what, value).replace("$", "$$")


def _text_of(recipe: Path) -> str:
    try:
        text = names.text("the recipe", recipe.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {recipe} cannot go into a ConfigMap: {error}") from error
    if len(text.encode()) > MOST:
        raise UserError(f"recipe {recipe} is over {MOST:,} bytes, the most of a ConfigMap")
    return text


def _tpu(text: str) -> tuple[int, int, dict[str, str]]:
    """(chips per host, hosts, labels of the nodes) of TYPE:TOPOLOGY."""
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
    labels = {"accelerator": TPUS[kind], "topology": topology}
    return chips, count // chips, {f"cloud.google.com/gke-tpu-{k}": v for k, v in labels.items()}


def as_yaml(made: Sequence[Manifest]) -> str:
    """The manifests as one stream, for `kubectl apply -f -`."""
    plain = json.loads(json.dumps(made))  # without aliases for shared parts
    texts = [yaml.safe_dump(manifest, sort_keys=False, width=1000) for manifest in plain]
    return "".join(f"---\n{text}" for text in texts)


def apply(made: Sequence[Manifest]) -> str:
    """Applies the manifests to the cluster of the current context, and returns what was done. A job
    of that name that still runs is left alone; one that has ended is replaced.

    Raises UserError: there is no client or no cluster, or the cluster refuses.
    """
    try:
        from kubernetes import client, config, dynamic
        from kubernetes.dynamic.exceptions import DynamicApiError, ResourceNotFoundError
    except ImportError as error:
        raise UserError(
            "vit launch kubernetes needs its client: pip install 'vit_jax[kubernetes]', or "
            "vit launch kubernetes --dry-run … | kubectl apply -f -"
        ) from error
    *parts, job = made
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    try:
        config.load_config()
        cluster = dynamic.DynamicClient(client.ApiClient())

        def kind_of(manifest: Manifest) -> Any:
            return cluster.resources.get(api_version=manifest["apiVersion"], kind=manifest["kind"])

        if not _removed(kind_of(job), name, namespace):
            return f"{name} runs already"
        for part in parts:
            kind_of(part).server_side_apply(
                body=part, namespace=namespace, field_manager="vit-launch"
            )
        kind_of(job).create(body=job, namespace=namespace)
    except ResourceNotFoundError as error:
        raise UserError(
            f"this cluster knows no {job['kind']} ({job['apiVersion']})"
            + (": install JobSet, or leave out --jobset" if job["kind"] == "JobSet" else "")
        ) from error
    except config.ConfigException as error:
        raise UserError(f"no Kubernetes cluster is configured here: {printable(error)}") from error
    except DynamicApiError as error:
        raise UserError(f"Kubernetes refused the job: {printable(error.summary())}") from error
    except Exception as error:  # urllib3's, about the connection
        if "Max retries" not in str(error):
            raise
        raise UserError(
            f"the Kubernetes cluster does not answer: {printable(str(error)[:200])}"
        ) from error
    return f"{name}: {job['kind']} created"


def _removed(kind: Any, name: str, namespace: str) -> bool:
    """Removes a job that has ended. False if it still runs."""
    from kubernetes.dynamic.exceptions import NotFoundError

    end, deleted = time.monotonic() + WAIT, False
    while time.monotonic() < end:
        try:
            status = kind.get(name=name, namespace=namespace).to_dict().get("status", {})
        except NotFoundError:
            return True
        if not any(c["type"] in ENDED and c["status"] == "True"
                   for c in status.get("conditions") or ()):  # fmt: skip
            return False
        if not deleted:
            kind.delete(name=name, namespace=namespace, body={"propagationPolicy": "Background"})
            deleted = True
        else:
            time.sleep(1.0)
    raise UserError(f"the last job {name} is over but does not go away: kubectl delete it")
