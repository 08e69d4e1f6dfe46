"""Ray's launcher files for clouds: against Ray's schema, through Ray's own updater, and their promises about costs.

No request goes to a cloud. The updater runs for real, against programs in a folder that stand for ssh, docker and ray.
"""

import copy
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.updater import NodeUpdater
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.node_provider import NodeProvider
from ray.job_submission import JobSubmissionClient
from ray.scripts.scripts import cli

import mnist_ray
from mnist_ray.cli.main import _parser
from mnist_ray.config import load_spec
from tests.ray_head import REPOSITORY, Head

CLOUDS = REPOSITORY / "cluster" / "clouds"
NAMES = ("aws", "gcp")
STOP_WHEN_IDLE = (sys.executable, str(CLOUDS / "stop_when_idle.py"))
SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


def read(name: str) -> dict[str, Any]:
    launcher: dict[str, Any] = yaml.safe_load((CLOUDS / f"{name}.yaml").read_text())
    return launcher


def text(name: str) -> str:
    return (CLOUDS / f"{name}.yaml").read_text()


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema whose `provider` takes only keys that a provider reads; Ray's takes any."""
    schema = copy.deepcopy(schema)
    schema["properties"]["provider"]["additionalProperties"] = False
    return schema


def errors_in(launcher: dict[str, Any]) -> list[str]:
    return [error.message for error in jsonschema.Draft7Validator(closed(SCHEMA)).iter_errors(launcher)]


@pytest.mark.parametrize("name", NAMES)
def test_launcher_file_is_valid(name: str) -> None:
    assert errors_in(read(name)) == []
    prepared = prepare_config(read(name))
    validate_config(prepared)
    # Whatever is left out comes from Ray's defaults, which install Ray from a download and open the dashboard to all.
    assert "http" not in json.dumps([prepared[key] for key in prepared if key.endswith("commands")])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["", "provider", "docker", "auth", "available_node_types.cpu"])
def test_misspelt_key_is_an_error(name: str, where: str) -> None:
    launcher = read(name)
    part = launcher
    for key in filter(None, where.split(".")):
        part = part[key]
    part["idle_timeout_minute"] = 1
    assert any("idle_timeout_minute" in error for error in errors_in(launcher))


def test_node_config_is_valid_for_ec2() -> None:
    """The AWS library's definition of RunInstances has names, types and choices."""
    session = pytest.importorskip("botocore.session").get_session()
    operation = session.get_service_model("ec2").operation_model("RunInstances")
    validator = pytest.importorskip("botocore.validate").ParamValidator()

    def report(node: dict[str, Any]) -> str:
        return str(validator.validate({**node, "MinCount": 1, "MaxCount": 1}, operation.input_shape).generate_report())

    for node_type in read("aws")["available_node_types"].values():
        node = node_type["node_config"]
        assert report(node) == ""
        assert "Unknown parameter" in report({**node, "InstanceMarketOption": {}})
    market = operation.input_shape.members["InstanceMarketOptions"].members["MarketType"]
    assert (
        read("aws")["available_node_types"]["cpu"]["node_config"]["InstanceMarketOptions"]["MarketType"] in market.enum
    )


@pytest.mark.parametrize("name", NAMES)
def test_only_workers_are_spot(name: str) -> None:
    launcher = read(name)
    types = launcher["available_node_types"]
    assert launcher["head_node_type"] == "head"
    assert types["head"]["resources"] == {"CPU": 0}
    spot = {
        kind: node["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        or node["node_config"].get("scheduling", {}).get("provisioningModel") == "SPOT"
        for kind, node in types.items()
    }
    assert spot == {"head": False, "cpu": True, "gpu": True}
    for kind, node in types.items():
        if name == "gcp" and spot[kind]:  # Compute Engine requires this of spot machines; no disks are left
            assert node["node_config"]["scheduling"] == {
                "provisioningModel": "SPOT",
                "instanceTerminationAction": "DELETE",
                "onHostMaintenance": "TERMINATE",
                "automaticRestart": False,
            }
            assert all(disk["autoDelete"] for disk in node["node_config"]["disks"])


@pytest.mark.parametrize("name", NAMES)
def test_unused_machines_end(name: str) -> None:
    launcher = read(name)
    assert launcher["available_node_types"]["gpu"]["max_workers"] == 0, "the user raises it"
    assert 0 < launcher["idle_timeout_minutes"] <= 30
    assert launcher["provider"]["cache_stopped_nodes"] is False, "stopped machines cost their disks"
    assert sum("stop_when_idle.py --minutes 30" in command for command in launcher["head_start_ray_commands"]) == 1


@pytest.mark.parametrize("name", NAMES)
def test_first_nodes_suffice_for_the_job(name: str) -> None:
    launcher = read(name)
    (line,) = re.findall(r"mnist-ray (submit .*)$", text(name).replace("\\\n#", ""), re.MULTILINE)
    parsed = _parser().parse_args(shlex.split(line))
    assert parsed.storage == f"{'s3' if name == 'aws' else 'gs'}://BUCKET/mnist"
    cpu = launcher["available_node_types"]["cpu"]
    spec = load_spec(REPOSITORY / parsed.spec, parsed.set)
    assert spec.autoscaling.cpus == cpu["max_workers"] * cpu["resources"]["CPU"]
    assert spec.retrain is not None
    needed = max(spec.retrain.workers * spec.retrain.cpus_per_worker, spec.search.cpus_per_trial)
    assert cpu["min_workers"] * cpu["resources"]["CPU"] >= needed
    assert cpu["max_workers"] <= launcher["max_workers"]
    gpu = launcher["available_node_types"]["gpu"]
    spec = load_spec(REPOSITORY / "jobs" / "mnist-gpu.yaml")
    (workers,) = re.findall(r"min_workers: 0  # (\d+) for jobs/mnist-gpu.yaml", text(name))
    assert spec.retrain is not None
    assert int(workers) * gpu["resources"]["GPU"] >= spec.retrain.workers * spec.retrain.gpus_per_worker
    assert int(workers) <= launcher["max_workers"]


@pytest.mark.parametrize("name", NAMES)
def test_documented_commands_exist(name: str) -> None:
    comment = text(name).partition("cluster_name:")[0].replace("\\\n#", "")
    commands = [
        shlex.split(line)
        for line in re.findall(r"^#  .*?(?<![-\w])((?:ray|cluster)[ /].*?)(?:  |$)", comment, re.MULTILINE)
    ]
    assert len(commands) >= 4
    for program, *arguments in commands:
        if program != "ray":
            assert os.access(REPOSITORY / program, os.X_OK)
            continue
        command: Any = cli.commands[arguments.pop(0)]
        if arguments[0] in getattr(command, "commands", {}):
            command = command.commands[arguments.pop(0)]
        rest = arguments[: arguments.index("--") if "--" in arguments else None]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in rest if word.startswith("--")} <= known, rest
        paths = [word for word in rest if word.endswith(".yaml")]
        assert all((REPOSITORY / path).is_file() for path in paths)


def test_both_clouds_start_ray_alike() -> None:
    aws, gcp = read("aws"), read("gcp")
    same = [key for key in aws if key not in ("provider", "available_node_types")]
    assert {key: aws[key] for key in same} == {key: gcp[key] for key in same}
    assert all(key in aws for key in SCHEMA["properties"] if key.endswith("commands")), "or Ray's defaults run"


@pytest.mark.parametrize("name", NAMES)
def test_current_image_and_no_secret(name: str) -> None:
    launcher = read(name)
    assert launcher["docker"]["image"] == f"mnist-ray:{mnist_ray.__version__}"
    assert not re.search(r"password|secret|ssh_private_key|aws_credentials|gcp_credentials|AKIA", text(name))
    fill_in = [line for line in text(name).splitlines() if "fill-in" in line and "fill in" not in line]
    assert all("ImageId" in line for line in fill_in), "a value to fill in is marked on its line, or on the line above"
    if name == "aws":
        for node in launcher["available_node_types"].values():
            assert node["node_config"]["IamInstanceProfile"]["Name"] in ("mnist-ray-head", "mnist-ray-worker")
            assert node["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}


# --- the updater -----------------------------------------------------------------------------------------------------

# Each stands for a program on a machine of the cluster; `exec` in the container is a shell with another home.
PROGRAMS = {
    "ssh": 'while [[ $1 != *@* ]]; do shift; done; shift; HOME=$HOST_HOME exec bash -c "$*"',
    "rsync": """
        source=${@: -2:1} target=${@: -1}
        target=${target#*:}
        mkdir -p "$(dirname "$target")"
        if [[ $source == */ ]]; then mkdir -p "$target"; cp -a "$source." "$target"; else cp -a "$source" "$target"; fi
    """,
    "docker": """
        echo "docker $*" >>"$RECORD"
        case "$1 $2 $3" in
            "inspect -f {{.State.Running}}") [[ -e $HOST_HOME/running ]] && echo true || echo false ;;
            "inspect -f {{json .Config.Env}}") echo "$IMAGE_ENV" ;;
            run*)
                touch "$HOST_HOME/running"
                while (($#)); do
                    # Elsewhere would be this machine's own files, in a home that is not the container's.
                    if [[ $1 == -v && $2 != *:$CONTAINER_HOME/* ]]; then exit 1; fi
                    if [[ $1 == -v ]]; then
                        mkdir -p "$(dirname "${2#*:}")"
                        ln -sfn "${2%%:*}" "${2#*:}"
                    fi
                    shift
                done ;;
            exec*)
                shift
                while [[ $1 == -* ]]; do shift; done
                shift
                HOME=$CONTAINER_HOME exec "$@" ;;
        esac
    """,
    "ray": 'echo "ray $* [$RAY_AUTH_MODE] ${RAY_OVERRIDE_RESOURCES:-}" >>"$RECORD"',
    "setsid": 'echo "setsid $*" >>"$RECORD"',
    "sudo": 'echo "sudo $*" >>"$RECORD"',
    "chown": "exit 0",
    "sleep": 'echo "sleep $*" >>"$RECORD"',
}


@dataclass(frozen=True)
class Machine:
    """A folder that stands for a machine, with the homes of its host and its container."""

    folder: Path
    cluster_name: str

    @property
    def container_home(self) -> Path:
        return self.folder / "container"

    def record(self) -> list[str]:
        return (self.folder / "record").read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine(tmp_path, f"test-{uuid.uuid4().hex[:8]}")
    programs, laptop = tmp_path / "bin", tmp_path / "laptop"
    for folder in (programs, tmp_path / "host", made.container_home, laptop / ".ray"):
        folder.mkdir(parents=True)
    for name, script in PROGRAMS.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{textwrap.dedent(script)}")
        (programs / name).chmod(0o755)
    path = f"{programs}:{Path(sys.executable).parent}:/usr/bin:/bin"
    for home in (tmp_path / "host", made.container_home):
        (home / ".bashrc").write_text(f"export PATH={path}\n")  # a login shell sets its own before
    token = laptop / ".ray" / "auth_token"
    token.write_text("a-token-of-the-tests")
    token.chmod(0o600)
    named = re.search(r"\bHOME=(\S+)", (REPOSITORY / "cluster" / "image" / "Dockerfile").read_text())
    image = [f"HOME={made.container_home}"] if named and named[1] == "/home/ray" else []
    for variable, value in {
        "PATH": path,
        "HOME": str(laptop),
        "HOST_HOME": str(tmp_path / "host"),
        "CONTAINER_HOME": str(made.container_home),
        "RECORD": str(tmp_path / "record"),
        "IMAGE_ENV": json.dumps(image),
    }.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.chdir(REPOSITORY)
    yield made
    shutil.rmtree(f"/tmp/ray_tmp_mount/{made.cluster_name}", ignore_errors=True)


class OneMachine(NodeProvider):
    """A cloud with one machine that always runs."""

    def __init__(self, cluster_name: str) -> None:
        super().__init__({"type": "external"}, cluster_name)
        self.tags: dict[str, str] = {}

    def is_terminated(self, node_id: str) -> bool:
        return False

    def external_ip(self, node_id: str) -> str:
        return "192.0.2.1"

    def node_tags(self, node_id: str) -> dict[str, str]:
        return self.tags

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        self.tags |= tags


def update(machine: Machine, launcher: dict[str, Any], kind: str) -> None:
    """Update a started machine, as `ray up` does with the head, and the head's autoscaler with a worker."""
    is_head = kind == "head"
    node_type = launcher["available_node_types"][kind]
    start = launcher["head_start_ray_commands" if is_head else "worker_start_ray_commands"]
    NodeUpdater(
        node_id="0",
        provider_config={"type": "external"},
        provider=OneMachine(machine.cluster_name),
        auth_config=launcher["auth"],
        cluster_name=machine.cluster_name,
        file_mounts=launcher["file_mounts"],
        initialization_commands=launcher["initialization_commands"],
        setup_commands=launcher["head_setup_commands" if is_head else "worker_setup_commands"],
        ray_start_commands=start if is_head else [f"export RAY_HEAD_IP=192.0.2.1; {command}" for command in start],
        runtime_hash="1",
        file_mounts_contents_hash="1",
        is_head_node=is_head,
        node_resources=node_type["resources"],
        docker_config={**launcher["docker"], **node_type.get("docker", {})},
    ).run()


def test_head_starts_with_token(machine: Machine) -> None:
    update(machine, prepare_config(read("aws")), "head")
    record = machine.record()
    (start,) = [line for line in record if line.startswith("ray start")]
    for option in ("--head", "--num-cpus=0", "--port=6379", "--dashboard-host=127.0.0.1", "--dashboard-port=8265"):
        assert f" {option} " in start
    assert f"--autoscaling-config={machine.container_home}/ray_bootstrap_config.yaml" in start
    assert '[token] {"CPU":0}' in start
    token = machine.container_home / ".ray" / "auth_token"
    assert token.read_text() == "a-token-of-the-tests"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    (idle_stop,) = [shlex.split(line) for line in record if line.startswith("setsid ")]
    script = idle_stop[idle_stop.index("python") + 1]
    assert Path(script).read_text() == (CLOUDS / "stop_when_idle.py").read_text()
    # Docker is there, its group is not ours yet; the command is not run as root's in the container.
    (group,) = [line for line in record if line.startswith("sudo ")]
    assert group.startswith("sudo usermod --append --groups docker ")


def test_worker_joins_with_its_gpu(machine: Machine) -> None:
    update(machine, prepare_config(read("gcp")), "gpu")
    (start,) = [line for line in machine.record() if line.startswith("ray start")]
    (run,) = [line for line in machine.record() if line.startswith("docker run")]
    assert " --address=192.0.2.1:6379 " in start
    assert " --min-worker-port=10002 --max-worker-port=10201 " in start
    assert '[token] {"CPU":8,"GPU":1}' in start
    assert " --gpus=all " in run and " --net=host " in run


def test_missing_token_starts_nothing(machine: Machine) -> None:
    (Path(os.environ["HOME"]) / ".ray" / "auth_token").unlink()
    with pytest.raises(AssertionError, match="auth_token"):
        update(machine, prepare_config(read("aws")), "head")
    assert not any("ray start" in line or line.startswith("docker run") for line in machine.record())


# --- roles, the idle stop, packages -----------------------------------------------------------------------------------


def test_roles_are_valid_for_iam(tmp_path: Path) -> None:
    fake = tmp_path / "aws"
    fake.write_text(
        "#!/usr/bin/env bash\n"
        '[[ $1 == sts ]] && echo 123456789012 && exit\nprintf "%s\\0" "$@" >>"$RECORD"; printf "\\1" >>"$RECORD"\n'
        "[[ $2 != get-role ]]\n"
    )
    fake.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "RECORD": str(tmp_path / "record")}
    subprocess.run([CLOUDS / "aws-roles.sh", "a-bucket"], env=environment, check=True, timeout=60)
    calls = [call.split("\0")[:-1] for call in (tmp_path / "record").read_text().split("\1")[:-1]]
    policies = {}
    for service, verb, *options in calls:
        assert service == "iam"
        given = dict(zip(options[::2], options[1::2], strict=True))
        if verb == "put-role-policy":
            policies[given["--role-name"], given["--policy-name"]] = json.loads(given["--policy-document"])
        if verb == "create-role":
            json.loads(given["--assume-role-policy-document"])
    assert set(policies) == {(f"mnist-ray-{kind}", "storage") for kind in ("head", "worker")} | {
        ("mnist-ray-head", "launch")
    }
    assert "arn:aws:s3:::a-bucket/*" in json.dumps(policies["mnist-ray-worker", "storage"])
    launch = json.dumps(policies["mnist-ray-head", "launch"])
    assert f'"ec2:ResourceTag/ray-cluster-name": "{read("aws")["cluster_name"]}"' in launch
    assert "role/mnist-ray-worker" in launch
    model = pytest.importorskip("botocore.session").get_session().get_service_model("iam")
    for _, verb, *options in calls:
        operation = "".join(word.capitalize() for word in verb.split("-")).replace("Aws", "AWS")
        members = {name.lower() for name in model.operation_model(operation).input_shape.members}
        assert {option.strip("-").replace("-", "") for option in options[::2]} <= members, verb


@pytest.mark.parametrize("arguments", [[], ["s3://bucket"], ["bucket/folder"]])
def test_roles_need_a_bucket(arguments: list[str]) -> None:
    done = subprocess.run([CLOUDS / "aws-roles.sh", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "name the bucket" in done.stderr


@pytest.mark.slow  # a quarter of a minute, a head of its own
def test_idle_stop_waits_for_work(head: Head, joined: str, tmp_path: Path) -> None:
    stopped, job = tmp_path / "stopped", tmp_path / "job"
    JobSubmissionClient(head.dashboard).submit_job(entrypoint=f"sh -c 'until [ -e {job} ]; do sleep 0.2; done'")
    joins = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False); print('in', flush=True); sys.stdin.read()"
    command = [
        *STOP_WHEN_IDLE,
        f"--address={head.dashboard}",
        "--minutes=0.03",
        "--every-s=0.3",
        f"--instead=touch {stopped}",
    ]
    with (
        subprocess.Popen(
            [sys.executable, "-c", joins, joined], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other_driver,
        subprocess.Popen(command, stdout=subprocess.PIPE) as idle_stop,
    ):
        assert other_driver.stdout and other_driver.stdin and other_driver.stdout.readline() == b"in\n"
        job.touch()
        with pytest.raises(subprocess.TimeoutExpired):
            idle_stop.wait(timeout=5)
        assert not stopped.exists()
        other_driver.stdin.close()
        assert idle_stop.wait(timeout=60) == 0
    assert stopped.exists()


def test_silent_job_server_counts_as_idle(tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    command = [*STOP_WHEN_IDLE, "--address=http://127.0.0.1:9", "--every-s=0.1"]
    subprocess.run(
        [*command, "--minutes=0.005", f"--instead=touch {stopped}"], check=True, timeout=60, capture_output=True
    )
    assert stopped.exists()


def test_head_ends_last(tmp_path: Path) -> None:
    """The launcher file names a provider of this test, in Ray's own way."""
    (tmp_path / "cloud.py").write_text(
        textwrap.dedent("""
        from pathlib import Path
        from ray.autoscaler.node_provider import NodeProvider
        from ray.autoscaler.tags import TAG_RAY_NODE_KIND

        class Cloud(NodeProvider):
            def non_terminated_nodes(self, tag_filters):
                return [f"{self.cluster_name}-{tag_filters[TAG_RAY_NODE_KIND]}-{i}" for i in range(2)]

            def terminate_node(self, node_id):
                with Path(self.provider_config["ended"]).open("a") as ended:
                    print(node_id, file=ended)
        """)
    )
    provider = {"type": "external", "module": "cloud.Cloud", "ended": str(tmp_path / "ended")}
    launcher = tmp_path / "launcher.json"
    launcher.write_text(json.dumps({"cluster_name": "c", "provider": provider}))
    command = [*STOP_WHEN_IDLE, "--minutes=0", f"--launcher-file={launcher}"]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=True, timeout=60)
    assert (tmp_path / "ended").read_text().split() == ["c-worker-0", "c-worker-1", "c-head-0", "c-head-1"]


def test_cloud_packages_have_the_same_pins() -> None:
    def pins(name: str) -> dict[str, str]:
        return dict(re.findall(r"^([\w-]+)==([^\s;]+)", (REPOSITORY / name).read_text(), re.MULTILINE))

    clouds, all_nodes = pins("requirements-clouds.txt"), pins("requirements.txt")
    assert {"boto3", "google-api-python-client"} <= clouds.keys()
    assert {name: version for name, version in clouds.items() if all_nodes.get(name, version) != version} == {}
