"""The manifests against KubeRay's definitions, and their promises: a resume, no root, a head without work.

The overlays are rendered here by a few lines; a slow test compares that with the real kustomize.
"""

import copy
import functools
import os
import re
import shlex
import shutil
import subprocess
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
from mnist_ray.ray_backend.jobs.job import RUN, STORAGE, VERSION, job_id_of
from mnist_ray.ray_backend.jobs.submit import JOB_ENVIRONMENT
from tests.ray_head import REPOSITORY

KUBERNETES = REPOSITORY / "cluster" / "kubernetes"
SCHEMAS = os.environ.get("MNIST_RAY_TEST_SCHEMAS")
OVERLAYS = ("cpu", "gpu", "kueue")  # those with a RayJob
ALL_OVERLAYS = (*OVERLAYS, "many-jobs")
PATCHES = ("gpu-workers.yaml", "queued.yaml")
MANIFESTS = sorted(
    path for path in KUBERNETES.rglob("*.yaml") if path.name not in ("kustomization.yaml", "names.yaml", *PATCHES)
)
KUSTOMIZE = next(
    (words for words in (["kustomize", "build"], ["kubectl", "kustomize"]) if shutil.which(words[0])), None
)
RELEASE = f"mnist-ray:{mnist_ray.__version__}"
PART_OF = {"app.kubernetes.io/part-of": "mnist-ray"}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def rendered(folder: Path) -> list[dict[str, Any]]:
    """Return the objects of a kustomization; of kustomize's features these files use images and JSON patches."""
    kustomization = read(folder / "kustomization.yaml")
    objects: list[dict[str, Any]] = []
    for resource in kustomization.get("resources", []):
        path = folder / resource
        objects += rendered(path) if path.is_dir() else [read(path)]
    for patch in kustomization.get("patches", []):
        operations = yaml.safe_load(patch["patch"]) if "patch" in patch else read(folder / patch["path"])
        for each in objects:
            if (each["kind"], each["metadata"]["name"]) == (patch["target"]["kind"], patch["target"]["name"]):
                for operation in operations:
                    _apply(each, operation)
    return objects


def _apply(target: Any, operation: dict[str, Any]) -> None:
    *parents, last = [name.replace("~1", "/") for name in operation["path"].strip("/").split("/")]
    for name in parents:
        target = target[int(name) if isinstance(target, list) else name]
    key = int(last) if isinstance(target, list) else last
    if operation["op"] == "remove":
        del target[key]
        return
    assert operation["op"] == "add" or key in target or isinstance(target, list)
    target[key] = copy.deepcopy(operation["value"])


def object_of(overlay: str, kind: str) -> dict[str, Any]:
    (found,) = [each for each in rendered(KUBERNETES / "overlays" / overlay) if each["kind"] == kind]
    return found


def job_of(overlay: str) -> dict[str, Any]:
    return object_of(overlay, "RayJob")


def cluster_of(overlay: str) -> dict[str, Any]:
    """Return the specification of an overlay's Ray cluster."""
    if overlay == "many-jobs":
        return object_of(overlay, "RayCluster")["spec"]  # type: ignore[no-any-return]
    return job_of(overlay)["spec"]["rayClusterSpec"]  # type: ignore[no-any-return]


def arguments_of(job: dict[str, Any]) -> Any:
    """Return the parsed arguments of a RayJob's entry point."""
    python, program, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert (python, program) == ("python", "jobs/run_once.py") and (REPOSITORY / program).is_file()
    return _parser().parse_args(["run", *arguments])


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


@functools.cache
def definition_of(kind: str) -> Draft202012Validator:
    """Return the definition of a kind; reading one takes most of the time of these tests."""
    if SCHEMAS is None:
        pytest.skip("MNIST_RAY_TEST_SCHEMAS names no folder with KubeRay's definitions")
    text = (Path(SCHEMAS) / f"ray.io_{kind.lower()}s.yaml").read_text()
    definition = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [each for each in definition["spec"]["versions"] if each["name"] == "v1"]
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return Draft202012Validator(schema)


def errors_in(manifest: dict[str, Any]) -> list[str]:
    errors = definition_of(manifest["kind"]).iter_errors(manifest)
    return [f"{error.json_path}: {error.message[:200]}" for error in errors]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_job_fits_the_definition(overlay: str) -> None:
    assert errors_in(job_of(overlay)) == []


def test_cluster_fits_the_definition() -> None:
    assert errors_in(object_of("many-jobs", "RayCluster")) == []


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
    of_job, of_cluster = cluster_of("cpu"), cluster_of("many-jobs")
    del of_job["headGroupSpec"]["template"]["spec"]["containers"][0]["lifecycle"]  # names the one job
    assert of_job == of_cluster


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_entry_point_uses_the_shared_volume(overlay: str) -> None:
    job = job_of(overlay)
    parsed = arguments_of(job)
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
    spec = load_spec(REPOSITORY / arguments_of(job).spec)
    cpus, gpus = 0, 0
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        cpus += group["replicas"] * int(limits["cpu"])
        gpus += group["replicas"] * int(limits.get("nvidia.com/gpu", 0))
    assert spec.retrain is not None
    assert cpus >= max(spec.retrain.fewest_workers * spec.retrain.cpus_per_worker, spec.search.cpus_per_trial)
    assert gpus >= max(spec.retrain.fewest_workers * spec.retrain.gpus_per_worker, spec.search.gpus_per_trial)


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_autoscaling_matches_the_limits(overlay: str) -> None:
    job = job_of(overlay)
    limits = [
        (group["maxReplicas"], group["template"]["spec"]["containers"][0]["resources"]["limits"])
        for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    ]
    parsed = arguments_of(job)
    autoscaling = load_spec(REPOSITORY / parsed.spec, parsed.set).autoscaling
    assert autoscaling.cpus == sum(count * int(limit["cpu"]) for count, limit in limits)
    assert autoscaling.gpus == sum(count * int(limit.get("nvidia.com/gpu", 0)) for count, limit in limits)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_limited_and_current(overlay: str) -> None:
    job = job_of(overlay)
    for name, pod in pods_of(job):
        for container in pod["containers"]:
            assert container["image"] == RELEASE, name
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys(), name
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def breaches(pod: dict[str, Any]) -> list[str]:
    """Return where a pod breaks the pod security standard `restricted`, as a namespace that enforces it says."""
    own = pod.get("securityContext", {})
    found = [key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    found += [volume["name"] for volume in pod.get("volumes", []) if not set(volume) - {"name"} <= allowed]
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        context = container.get("securityContext", {})
        both = {**own, **context}
        checks = {
            "runAsNonRoot": both.get("runAsNonRoot") is True,
            "runAsUser": both.get("runAsUser") != 0,
            "seccompProfile": both.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
            "allowPrivilegeEscalation": context.get("allowPrivilegeEscalation") is False,
            "capabilities": context.get("capabilities") == {"drop": ["ALL"]},
            "privileged": not context.get("privileged"),
            "ports": not any("hostPort" in port for port in container.get("ports", [])),
        }
        found += [f"{container.get('name')}: {check}" for check, holds in checks.items() if not holds]
    return found


def all_pods(overlay: str) -> list[dict[str, Any]]:
    """Return every pod of an overlay, the autoscaler inside the head's as KubeRay adds it."""
    cluster = cluster_of(overlay)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    templates = [group["template"] for group in groups]
    if overlay != "many-jobs":
        templates.append(job_of(overlay)["spec"]["submitterPodTemplate"])
    if cluster.get("enableInTreeAutoscaling"):
        autoscaler = {"name": "autoscaler", **cluster["autoscalerOptions"]}
        templates[0]["spec"]["containers"].append(autoscaler)
    return templates


@pytest.mark.parametrize("overlay", ALL_OVERLAYS)
def test_pods_fit_a_restricted_namespace(overlay: str) -> None:
    for template in all_pods(overlay):
        assert breaches(template["spec"]) == []


@pytest.mark.parametrize("part", ["seccompProfile", "runAsNonRoot"])
def test_breach_is_found(part: str) -> None:
    pod = all_pods("cpu")[0]["spec"]
    del pod["securityContext"][part]
    assert any(part in breach for breach in breaches(pod))


@pytest.mark.parametrize("overlay", ALL_OVERLAYS)
def test_policy_selects_our_pods_only(overlay: str) -> None:
    """Every pod carries the label that the policy selects, and no label that other workloads carry is enough."""
    policy = object_of(overlay, "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"] == PART_OF
    for template in all_pods(overlay):
        assert PART_OF.items() <= template["metadata"]["labels"].items()
    nodes, clients = policy["ingress"]
    assert [peer["podSelector"]["matchLabels"] for peer in nodes["from"]] == [{**PART_OF, "ray.io/is-ray-node": "yes"}]
    assert [port["port"] for port in clients["ports"]] == [8265]
    selectors = [peer["podSelector"]["matchLabels"] for peer in clients["from"]]
    assert {"app.kubernetes.io/name": "kuberay-operator"} in selectors, "installed with Helm"
    assert {"app.kubernetes.io/component": "kuberay-operator"} in selectors, "installed with kustomize"
    if overlay != "many-jobs":
        (submitter,) = [each for each in selectors if PART_OF.items() <= each.items()]
        assert submitter.items() <= all_pods(overlay)[-1]["metadata"]["labels"].items()


@pytest.mark.parametrize("overlay", ALL_OVERLAYS)
def test_disruption_budget_is_ours(overlay: str) -> None:
    selector = object_of(overlay, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"]
    assert selector == {**PART_OF, "ray.io/node-type": "head"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_commands_find_the_run(overlay: str) -> None:
    """The job has the id and the metadata that `submit` gives, which `status`, `logs`, `stop` and `fetch` look for."""
    job = job_of(overlay)["spec"]
    arguments = arguments_of(job_of(overlay))
    assert job["jobId"] == job_id_of(arguments.name, 1)
    assert job["metadata"] == {RUN: arguments.name, STORAGE: arguments.storage, VERSION: mnist_ray.__version__}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_stop_leaves_time_to_the_driver(overlay: str) -> None:
    job = job_of(overlay)["spec"]
    assert yaml.safe_load(job["runtimeEnvYAML"]) == {"env_vars": JOB_ENVIRONMENT}
    (head,) = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert job["jobId"] in head["lifecycle"]["preStop"]["exec"]["command"]


@pytest.mark.parametrize("overlay", ALL_OVERLAYS)
def test_workers_go_after_the_job(overlay: str) -> None:
    """No GPU is held by a job that has ended: the autoscaler removes the workers, or the whole cluster goes at once."""
    cluster = cluster_of(overlay)
    if cluster.get("enableInTreeAutoscaling"):
        assert [group["minReplicas"] for group in cluster["workerGroupSpecs"]] == [0]
        assert cluster["autoscalerOptions"]["idleTimeoutSeconds"] <= 300
    else:
        assert job_of(overlay)["spec"]["ttlSecondsAfterFinished"] == 0
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert "nvidia.com/gpu" not in head["resources"]["limits"]


def test_gpu_overlay_has_gpu_workers_only() -> None:
    (group,) = cluster_of("gpu")["workerGroupSpecs"]
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_kueue_overlay_is_what_kueue_takes() -> None:
    """Kueue refuses a RayJob that scales or whose cluster stays; it starts suspended ones with a queue's label."""
    job = job_of("kueue")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert job["spec"]["suspend"] and job["spec"]["shutdownAfterJobFinishes"]
    assert "enableInTreeAutoscaling" not in job["spec"]["rayClusterSpec"]
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]


needs_kustomize = pytest.mark.skipif(KUSTOMIZE is None, reason="needs kustomize or kubectl")


def kustomized(folder: Path) -> list[dict[str, Any]]:
    assert KUSTOMIZE is not None
    done = subprocess.run([*KUSTOMIZE, str(folder)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return list(yaml.safe_load_all(done.stdout))


def in_order(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(objects, key=lambda each: (each["kind"], each["metadata"]["name"]))


@needs_kustomize
@pytest.mark.slow
@pytest.mark.parametrize("overlay", ALL_OVERLAYS)
def test_kustomize_renders_the_same(overlay: str) -> None:
    folder = KUBERNETES / "overlays" / overlay
    assert in_order(kustomized(folder)) == in_order(rendered(folder))


@needs_kustomize
@pytest.mark.slow
def test_metrics_component_opens_one_port(tmp_path: Path) -> None:
    tree = shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    file = tree / "overlays" / "cpu" / "kustomization.yaml"
    file.write_text(f"{file.read_text()}components:\n  - ../../components/metrics\n")
    (policy,) = [each for each in kustomized(file.parent) if each["kind"] == "NetworkPolicy"]
    *before, added = policy["spec"]["ingress"]
    assert before == object_of("cpu", "NetworkPolicy")["spec"]["ingress"]
    assert added["ports"] == [{"protocol": "TCP", "port": 8080}]
    assert all("namespaceSelector" in peer and "podSelector" in peer for peer in added["from"])


@needs_kustomize
@pytest.mark.slow
@pytest.mark.parametrize("overlay", ALL_OVERLAYS)
def test_prefix_and_image_reach_everything(overlay: str, tmp_path: Path) -> None:
    """A prefix and another registry leave no pod with the old image, without its volume, or shut out."""
    tree = shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    file = tree / "overlays" / overlay / "kustomization.yaml"
    text = file.read_text().replace("newName: mnist-ray", "newName: registry.test/mnist-ray")
    file.write_text(f"{text}namePrefix: team-\n")
    objects = {each["kind"]: each for each in kustomized(file.parent)}
    volume = objects["PersistentVolumeClaim"]["metadata"]["name"]
    assert volume == "team-mnist-results"
    main = objects["RayCluster" if overlay == "many-jobs" else "RayJob"]
    text = yaml.safe_dump(main)
    assert set(re.findall(r"claimName: (\S+)", text)) == {volume}
    assert set(re.findall(r"image: (\S+)", text)) == {f"registry.test/{RELEASE}"}
    assert objects["NetworkPolicy"]["spec"] == object_of(overlay, "NetworkPolicy")["spec"]
    assert "batch.kubernetes.io/job-name" not in yaml.safe_dump(objects["NetworkPolicy"]), "it takes the prefix"


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


def test_every_manifest_is_used() -> None:
    used = {
        (kustomization.parent / resource).resolve()
        for kustomization in KUBERNETES.rglob("kustomization.yaml")
        for resource in read(kustomization).get("resources", [])
    }
    assert all(path.exists() for path in used)
    assert set(MANIFESTS) <= used
    page = (REPOSITORY / "docs" / "clusters" / "kubernetes.md").read_text()
    assert all(f"overlays/{overlay}" in page or f"`{overlay}`" in page for overlay in ALL_OVERLAYS)
    assert "KubeRay 1.5.1" in page


def test_overlays_set_image_and_storage() -> None:
    for overlay in ALL_OVERLAYS:
        kustomization = read(KUBERNETES / "overlays" / overlay / "kustomization.yaml")
        (image,) = kustomization["images"]
        assert image["name"] == "mnist-ray" and image["newTag"] == mnist_ray.__version__
        assert any(patch["target"]["kind"] == "PersistentVolumeClaim" for patch in kustomization["patches"])
    assert not re.search(r"[a-z0-9-]+\.(io|com|dev)/[a-z0-9-]+/", "".join(path.read_text() for path in MANIFESTS))
