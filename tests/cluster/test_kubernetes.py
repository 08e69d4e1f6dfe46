"""The manifests against KubeRay's definitions, and their promises: a resume, no root, a head without work."""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from jsonschema import Draft202012Validator

import mnist_ray
from mnist_ray.cli.main import _parser
from mnist_ray.config import load_spec
from tests.ray_head import REPOSITORY

KUBERNETES = REPOSITORY / "cluster" / "kubernetes"
SCHEMAS = os.environ.get("MNIST_RAY_TEST_SCHEMAS")
OVERLAYS = ("cpu", "gpu")
MANIFESTS = sorted(
    path for path in KUBERNETES.rglob("*.yaml") if path.name not in ("kustomization.yaml", "gpu-workers.yaml")
)


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def job_of(overlay: str) -> dict[str, Any]:
    """Return the RayJob that an overlay makes; of kustomize's features the overlays use images and JSON patches."""
    job: dict[str, Any] = read(KUBERNETES / "base" / "rayjob.yaml")
    for patch in read(KUBERNETES / "overlays" / overlay / "kustomization.yaml")["patches"]:
        if patch["target"]["kind"] == "RayJob":
            for operation in read(KUBERNETES / "overlays" / overlay / patch["path"]):
                _apply(job, operation)
    return job


def _apply(target: Any, operation: dict[str, Any]) -> None:
    *parents, last = operation["path"].strip("/").split("/")
    for name in parents:
        target = target[name]
    if last == "-":
        assert operation["op"] == "add"
        target.append(operation["value"])
    else:
        assert operation["op"] == "replace" and last in target
        target[last] = operation["value"]


def pods_of(job: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    cluster = job["spec"]["rayClusterSpec"]
    yield "submitter", job["spec"]["submitterPodTemplate"]["spec"]
    yield "head", cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]


def closed(schema: Any) -> Any:
    """Return a schema that refuses unknown fields, which the API server drops silently."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    is_object = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if is_object and not schema.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in schema:
        inner["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        inner.pop("anyOf", None)
        inner["type"] = ["integer", "string"]
    return inner


def errors_in(manifest: dict[str, Any]) -> list[str]:
    if SCHEMAS is None:
        pytest.skip("MNIST_RAY_TEST_SCHEMAS names no folder with KubeRay's definitions")
    kind = manifest["kind"].lower()
    definition = read(Path(SCHEMAS) / f"ray.io_{kind}s.yaml")
    (version,) = [each for each in definition["spec"]["versions"] if each["name"] == "v1"]
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return [f"{error.json_path}: {error.message[:200]}" for error in Draft202012Validator(schema).iter_errors(manifest)]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_job_fits_the_definition(overlay: str) -> None:
    assert errors_in(job_of(overlay)) == []


def test_cluster_fits_the_definition() -> None:
    assert errors_in(read(KUBERNETES / "many-jobs" / "raycluster.yaml")) == []


@pytest.mark.parametrize("mistake", ["spec.backofLimit", "spec.rayClusterSpec.headGroupSpec.rayStartParam"])
def test_misspelt_field_is_an_error(mistake: str) -> None:
    job = job_of("cpu")
    *parents, last = mistake.split(".")
    part = job
    for name in parents:
        part = part[name]
    part[last] = 1
    assert any(last in error for error in errors_in(job))


def test_both_clusters_have_the_same_pods() -> None:
    job, cluster = read(KUBERNETES / "base" / "rayjob.yaml"), read(KUBERNETES / "many-jobs" / "raycluster.yaml")
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_entry_point_uses_the_shared_volume(overlay: str) -> None:
    job = job_of(overlay)
    program, *arguments = shlex.split(job["spec"]["entrypoint"])
    parsed = _parser().parse_args(arguments)
    assert program == "mnist-ray"
    assert (REPOSITORY / parsed.spec).is_file()
    assert parsed.name, "a retry goes on with the run of that name"
    for name, pod in pods_of(job):
        if name != "submitter":
            mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
            volumes = {volume["name"]: volume for volume in pod["volumes"]}
            assert set(mounts.values()) == set(volumes)
            assert volumes[mounts[parsed.storage]]["persistentVolumeClaim"]["claimName"] == "mnist-results"
            assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_first_nodes_suffice_for_the_spec(overlay: str) -> None:
    job = job_of(overlay)
    spec = load_spec(REPOSITORY / _parser().parse_args(shlex.split(job["spec"]["entrypoint"])[1:]).spec)
    cpus, gpus = 0, 0
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert group["minReplicas"] == group["replicas"] <= group["maxReplicas"]
        cpus += group["minReplicas"] * int(limits["cpu"])
        gpus += group["minReplicas"] * int(limits.get("nvidia.com/gpu", 0))
    assert cpus >= max(spec.retrain.fewest_workers * spec.retrain.cpus_per_worker, spec.search.cpus_per_trial)
    assert gpus >= max(spec.retrain.fewest_workers * spec.retrain.gpus_per_worker, spec.search.gpus_per_trial)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_autoscaling_matches_the_limits(overlay: str) -> None:
    job = job_of(overlay)
    limits = [
        (group["maxReplicas"], group["template"]["spec"]["containers"][0]["resources"]["limits"])
        for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    ]
    parsed = _parser().parse_args(shlex.split(job["spec"]["entrypoint"])[1:])
    autoscaling = load_spec(REPOSITORY / parsed.spec, parsed.set).autoscaling
    assert autoscaling.cpus == sum(count * int(limit["cpu"]) for count, limit in limits)
    assert autoscaling.gpus == sum(count * int(limit.get("nvidia.com/gpu", 0)) for count, limit in limits)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_limited_and_current(overlay: str) -> None:
    job = job_of(overlay)
    for name, pod in pods_of(job):
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0, name
        for container in pod["containers"]:
            assert container["image"] == f"mnist-ray:{mnist_ray.__version__}", name
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys(), name
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_store_keys_come_from_a_secret(overlay: str) -> None:
    job = job_of(overlay)
    for name, pod in pods_of(job):
        (container,) = pod["containers"]
        secret = [{"secretRef": {"name": "mnist-storage", "optional": True}}]
        assert container.get("envFrom") == (None if name == "submitter" else secret), name
        assert "env" not in container


def test_job_has_retries_and_a_deadline() -> None:
    spec = job_of("cpu")["spec"]
    assert spec["backoffLimit"] > 0 and spec["activeDeadlineSeconds"] > 3600
    assert spec["shutdownAfterJobFinishes"] and spec["ttlSecondsAfterFinished"] > 0
    graces = [pod.get("terminationGracePeriodSeconds", 60) for _, pod in pods_of(job_of("cpu"))]
    assert min(graces) >= 30  # a driver stops within ten seconds


def test_every_manifest_is_named() -> None:
    named = {
        (kustomization.parent / resource).resolve()
        for kustomization in KUBERNETES.rglob("kustomization.yaml")
        for resource in read(kustomization)["resources"]
    }
    page = (REPOSITORY / "docs" / "clusters.md").read_text() + (
        KUBERNETES / "many-jobs" / "raycluster.yaml"
    ).read_text()
    assert all(path.exists() for path in named)
    assert all(path in named or str(path.relative_to(REPOSITORY)) in page for path in MANIFESTS)


def test_overlays_set_image_and_storage() -> None:
    for overlay in OVERLAYS:
        kustomization = read(KUBERNETES / "overlays" / overlay / "kustomization.yaml")
        (image,) = kustomization["images"]
        assert image["name"] == "mnist-ray" and image["newTag"] == mnist_ray.__version__
        assert any(patch["target"]["kind"] == "PersistentVolumeClaim" for patch in kustomization["patches"])
    assert not re.search(r"[a-z0-9-]+\.(io|com|dev)/[a-z0-9-]+/", "".join(path.read_text() for path in MANIFESTS))
