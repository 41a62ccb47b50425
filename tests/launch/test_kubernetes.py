"""Manifests: whole as in golden/, strictly valid by Kubernetes' own schemas, applied to a stand-in
of an API server that records what it is asked. No cluster was used."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from vit_jax.launch import kubernetes
from vit_jax.launch.job import Job

from vit_jax import cli
from vit_jax.errors import UserError

# The client reads the name when it is first imported; each stand-in writes the file.
KUBECONFIG = Path(tempfile.mkdtemp()) / "config"
os.environ["KUBECONFIG"] = str(KUBECONFIG)
GOLDEN = Path(__file__).parent / "golden"
RECIPE = "# a recipe\n"
SHAPES = {
    "job": (
        {"processes": 2, "devices": 8, "cpus": 32, "memory": "256G", "time_limit": 600.0},
        {"nodes": {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}},
    ),
    "job_cpu": ({"platform": "cpu", "devices": 2}, {"namespace": "research"}),
    "job_tpu": ({}, {"tpu": "v5e:4x4"}),
    "jobset": ({"processes": 4, "devices": 8, "restarts": 3}, {"jobset": True}),
    "jobset_tpu": ({}, {"tpu": "v5p:2x2x4", "jobset": True, "slices": 2}),
}


@pytest.fixture
def made(request, tmp_path, monkeypatch):
    """The manifests of a shape, of a run with a recipe of the user's own."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(RECIPE, encoding="utf-8")
    return build(request.param)


def build(shape):
    fields, options = SHAPES[shape]
    job = Job(
        "b16-0123456789ab", ("train", "--config=mine.py:b16", "--workdir=/runs/b16-0123456789ab"),
        Path("/runs/logs/b16-0123456789ab"), image="registry.example/vit_jax:1",
        volumes=(("runs", "/runs"), ("images", "/data")), **fields,
    )  # fmt: skip
    return kubernetes.manifests(job, **options)


@pytest.mark.parametrize(("made", "golden"), [(s, s) for s in SHAPES], indirect=["made"])
def test_manifests_are_those_in_golden(made, golden):
    file = GOLDEN / f"{golden}.yaml"
    if os.environ.get("WRITE_GOLDEN"):
        file.write_text(kubernetes.as_yaml(made))
    assert list(yaml.safe_load_all(file.read_text())) == json.loads(json.dumps(made))
    assert kubernetes.as_yaml(made) == file.read_text()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("version", ["1.31", "1.33"])
def test_manifests_are_strictly_valid(shape, version):
    for one in yaml.safe_load_all((GOLDEN / f"{shape}.yaml").read_text()):
        if one["kind"] == "JobSet":  # its own schema is not there; that of what it makes is
            for replica in one["spec"]["replicatedJobs"]:
                job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": one["metadata"]}
                kubernetes_validate.validate(
                    job | {"spec": replica["template"]["spec"]}, version, strict=True
                )
        else:
            kubernetes_validate.validate(one, version, strict=True)


def test_the_validation_would_find_a_word_that_kubernetes_does_not_know():
    (*_, job) = build("job_cpu")
    job["spec"]["template"]["spec"]["restartPolice"] = "Never"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.31", strict=True)


def test_every_pod_is_told_where_the_first_one_is():
    for shape, first in (("job", "b16-0123456789ab-0"), ("jobset", "b16-0123456789ab-slice-0-0")):
        (*_, job) = build(shape)
        spec = job["spec"]
        if shape == "jobset":
            assert spec["network"]["subdomain"] == job["metadata"]["name"]
            spec = spec["replicatedJobs"][0]["template"]["spec"]
        pod = spec["template"]["spec"]
        env = {one["name"]: one["value"] for one in pod["containers"][0]["env"]}
        assert env == {
            "JAX_COORDINATOR_ADDRESS": f"{first}.{pod['subdomain']}:8476",
            "JAX_NUM_PROCESSES": str(spec["completions"]),
        }


def test_hosts_of_a_slice_follow_from_its_topology():
    def hosts(tpu):
        job = Job("a", ("train",), Path("logs"), image="i")
        spec = kubernetes.manifests(job, tpu=tpu)[-1]["spec"]
        limits = spec["template"]["spec"]["containers"][0]["resources"]["limits"]
        return spec["completions"], limits["google.com/tpu"]

    assert [hosts(t) for t in ("v5e:1x1", "v5e:2x2", "v5e:16x16", "v5p:2x2x4", "v6e:4x8")] == [
        (1, "1"), (1, "4"), (64, "4"), (4, "4"), (8, "4"),
    ]  # fmt: skip


# -- applied to a stand-in of an API server ------------------------------------------------------
RESOURCES = {
    "/api/v1": [("configmaps", "ConfigMap"), ("services", "Service")],
    "/apis/batch/v1": [("jobs", "Job")],
    "/apis/jobset.x-k8s.io/v1alpha2": [("jobsets", "JobSet")],
}


class ApiServer(ThreadingHTTPServer):
    """Knows RESOURCES, keeps what it is given, and records (method, path) of what changes it."""

    def __init__(self, resources=RESOURCES):
        super().__init__(("127.0.0.1", 0), Handler)
        self.resources, self.objects, self.changes = resources, {}, []
        KUBECONFIG.write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "here", "cluster": {
                "server": f"http://127.0.0.1:{self.server_port}"}}],
            "users": [{"name": "me", "user": {}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        }))  # fmt: skip

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def answer(self, value, code=200):
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def missing(self):
        self.answer({"kind": "Status", "status": "Failure", "reason": "NotFound",
                     "message": "not found", "code": 404}, 404)  # fmt: skip

    def do_GET(self):
        path = self.path.partition("?")[0]
        server = self.server
        groups = [p.split("/")[2:] for p in server.resources if p.startswith("/apis/")]
        if path == "/version":
            self.answer({"major": "1", "minor": "33"})
        elif path == "/api":
            self.answer({"kind": "APIVersions", "versions": ["v1"]})
        elif path == "/apis":
            self.answer({"kind": "APIGroupList", "groups": [
                {"name": group, "versions": [{"groupVersion": f"{group}/{v}", "version": v}],
                 "preferredVersion": {"groupVersion": f"{group}/{v}", "version": v}}
                for group, v in groups]})  # fmt: skip
        elif path in server.resources:
            self.answer({"kind": "APIResourceList", "groupVersion": path.split("/", 2)[2],
                         "resources": [
                {"name": name, "singularName": kind.lower(), "namespaced": True, "kind": kind,
                 "verbs": ["create", "delete", "get", "patch"]}
                for name, kind in server.resources[path]]})  # fmt: skip
        elif path in server.objects:
            self.answer(server.objects[path])
        else:
            self.missing()

    def body(self):
        return yaml.safe_load(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def change(self, path, value):
        self.server.changes.append((self.command, path))
        self.server.objects[path] = value
        self.answer(value, 201)

    def do_POST(self):
        value = self.body()
        self.change(f"{self.path.partition('?')[0]}/{value['metadata']['name']}", value)

    def do_PATCH(self):
        self.change(self.path.partition("?")[0], self.body())

    def do_DELETE(self):
        path = self.path.partition("?")[0]
        self.body()
        self.server.changes.append((self.command, path))
        self.answer(self.server.objects.pop(path))


LAUNCH = ["launch", "kubernetes", "--image=i", "--volume=runs:/runs", "--processes=2"]
TRAIN = ["--", "train", "--config=digits.py"]


@pytest.fixture
def server():
    with ApiServer() as server:
        yield server


@pytest.mark.parametrize("jobset", [False, True])
def test_a_job_is_created_once_and_again_when_it_is_over(server, capsys, jobset):
    arguments = [*LAUNCH, *(["--jobset"] if jobset else []), *TRAIN]
    kind, path = ("JobSet", "/apis/jobset.x-k8s.io/v1alpha2/namespaces/default/jobsets/") if (
        jobset) else ("Job", "/apis/batch/v1/namespaces/default/jobs/")  # fmt: skip
    assert cli.main(arguments) == 0
    name, _, said = capsys.readouterr().out.partition(": ")
    assert said == f"{kind} created\n"
    service = [] if jobset else [("PATCH", f"/api/v1/namespaces/default/services/{name}")]
    assert server.changes == [*service, ("POST", path.rstrip("/") + f"/{name}")]
    created = server.objects[path + name]
    assert [created] == [one for one in shown(capsys, arguments) if one["kind"] == kind]

    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == f"{name} runs already\n"
    over = "Completed" if jobset else "Failed"
    created["status"] = {"conditions": [{"type": over, "status": "True"}]}
    server.changes.clear()
    assert cli.main(arguments) == 0
    assert server.changes == [
        ("DELETE", path + name), *service, ("POST", path + name)
    ]  # fmt: skip


def shown(capsys, arguments):
    capsys.readouterr()
    assert cli.main([*arguments[:2], "--dry-run", *arguments[2:]]) == 0
    return list(yaml.safe_load_all(capsys.readouterr().out))


def test_a_cluster_without_jobsets_says_so(capsys):
    with ApiServer({path: kinds for path, kinds in RESOURCES.items() if "jobset" not in path}) as (
        server
    ):
        assert cli.main([*LAUNCH, "--jobset", *TRAIN]) == 2
    err = capsys.readouterr().err
    assert "this cluster knows no JobSet (jobset.x-k8s.io/v1alpha2): install JobSet" in err
    assert server.changes == []


def test_what_is_printed_is_for_kubectl(tmp_path):
    """The line of docs/launching.md, with a kubectl that records what it is given."""
    stand_in = tmp_path / "kubectl"
    stand_in.write_text('#!/bin/sh\necho "$@" > "$RECORD.line"\ncat > "$RECORD.yaml"\n')
    stand_in.chmod(0o755)
    root = Path(__file__).parents[2]
    vit = f"{sys.executable} -m vit_jax.cli"
    subprocess.run(
        f"{vit} {' '.join([*LAUNCH[:2], '--dry-run', *LAUNCH[2:], *TRAIN])} | kubectl apply -f -",
        shell=True, check=True, cwd=root, timeout=60,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(root),
                          "RECORD": str(tmp_path / "record")},
    )  # fmt: skip
    assert (tmp_path / "record.line").read_text() == "apply -f -\n"
    kinds = [one["kind"] for one in yaml.safe_load_all((tmp_path / "record.yaml").read_text())]
    assert kinds == ["Service", "Job"]


def test_a_cluster_that_does_not_answer_or_is_not_configured_is_one_clear_line(capsys):
    with ApiServer():
        pass
    assert cli.main([*LAUNCH, *TRAIN]) == 2
    assert "the Kubernetes cluster does not answer" in capsys.readouterr().err
    KUBECONFIG.unlink()
    assert cli.main([*LAUNCH, *TRAIN]) == 2
    assert "no Kubernetes cluster is configured here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tpu": "v9:2x2"}, "--tpu=v9:2x2 is no TYPE:TOPOLOGY"),
        ({"tpu": "v5e"}, "--tpu=v5e is no TYPE:TOPOLOGY"),
        ({"tpu": "v5e:3x3"}, "9 chips are no whole hosts of 4"),
        ({"tpu": "v5e:2x2", "slices": 2}, "one job as a JobSet alone: --jobset"),
        ({"slices": 2, "jobset": True}, "--slices counts TPU slices"),
    ],
)
def test_slices_that_cannot_be_are_refused(options, says):
    with pytest.raises(UserError, match=says):
        kubernetes.manifests(Job("a", ("train",), Path("logs"), image="i"), **options)
