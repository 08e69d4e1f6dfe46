"""Canaries: each fails when a part of Ray moves on which mnist_ray/ray_backend/compat.py relies."""

import contextlib
import inspect
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private.node import Node
from ray.air.execution._internal import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.job_submission import JobSubmissionClient
from ray.train.torch import TorchConfig
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.tune.execution import tune_controller
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE
from ray.tune.experiment import Trial

from mnist_ray.ray_backend import compat
from mnist_ray.ray_backend.compat import AnswerError
from mnist_ray.ray_backend.jobs.client import JobClient
from mnist_ray.ray_backend.train.process_group import GroupConfig, InterfaceBackend

RAY = Path(ray.__file__).parent


def source_of(part: Any) -> str:
    return inspect.getsource(part)


def test_importing_compat_imports_no_ray() -> None:
    code = "import sys, mnist_ray.ray_backend.compat, mnist_ray.ray_backend.backend; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", [*compat.ENVIRONMENT, *compat.LOCAL_ENVIRONMENT, *compat.PROCESS_LIMITS])
def test_environment_variable_is_read(name: str) -> None:
    places = ["_common", "_private", "air", "train", "tune", "core/src/ray/raylet/raylet"]
    search = ["grep", "-rqw", "--include=*.py", "--include=raylet", name, *places]
    assert subprocess.run(search, cwd=RAY).returncode == 0


def test_init_takes_a_temporary_folder(tmp_path: Path) -> None:
    (option,) = compat.folder_options(tmp_path)
    assert f'"{option}"' in source_of(ray.init)
    assert compat.folder_options(None) == {}


def test_node_that_gives_up_raises_a_bare_exception() -> None:
    assert re.search(r'raise Exception\(\s*"The current node timed out', source_of(Node.__init__))
    assert "self.start_head_processes()" in source_of(Node.__init__)
    assert {"check_alive", "allow_graceful"} <= inspect.signature(Node.kill_all_processes).parameters.keys()


def test_upload_is_packed_without_ignored_files(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_bytes(bytes(range(256)) * 4)
    size = compat.upload_bytes(tmp_path)
    (tmp_path / ".gitignore").write_text("ignored.txt\n")
    (tmp_path / "ignored.txt").write_text("x" * 100_000)
    assert 0 < size <= compat.upload_bytes(tmp_path) < size + 1000
    assert compat.most_upload_bytes() >= 100 * 1024**2


class ServerError(BaseHTTPRequestHandler):
    """A job server whose every answer is an error, or that is silent for a second at /silent."""

    def do_GET(self) -> None:
        if "silent" in self.path:
            time.sleep(1.0)
        with contextlib.suppress(ConnectionError):  # the client has given up
            self.send_response(500)
            self.end_headers()
            self.wfile.write(b"no room")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def job_client(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobClient]:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # which Ray's client would prefer
    server = ThreadingHTTPServer(("127.0.0.1", 0), ServerError)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield JobClient(f"http://127.0.0.1:{server.server_port}", connect_s=1.0, answer_s=0.2)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_job_client_raises_the_servers_error(job_client: JobClient) -> None:
    with pytest.raises(AnswerError, match="500: no room"):
        job_client.list_jobs()


def test_job_client_has_a_time_limit(job_client: JobClient) -> None:
    with pytest.raises(OSError, match="timed out"):
        job_client.get_job_info("silent")


@pytest.mark.parametrize("method", ["_do_request", "_raise_error", "_check_connection_and_version"])
def test_job_client_overrides_a_method_of_ray(method: str) -> None:
    assert callable(getattr(JobSubmissionClient, method))


# --- Tune


def test_trials_get_no_credentials() -> None:
    before = set(ENV_VARS_TO_PROPAGATE)
    try:
        ENV_VARS_TO_PROPAGATE.update({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"})
        compat.keep_credentials_from_trials()
        assert not [name for name in ENV_VARS_TO_PROPAGATE if "AWS" in name]
        assert "ENV_VARS_TO_PROPAGATE" in Path(inspect.getfile(tune_controller)).with_name("class_cache.py").read_text()
    finally:
        ENV_VARS_TO_PROPAGATE.update(before)


class Actor:
    """As much of an actor in Tune's hands as its manager looks at."""

    actor_id = 1

    def __init__(self, on_error: Callable[[object, Exception], None]) -> None:
        self._on_error = on_error


class Calls:
    """A task of an actor in Tune's hands, and the calls that Tune gets about it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.actor = Actor(self.actor_failed)
        self.task: Any = SimpleNamespace(_tracked_actor=self.actor, _on_error=self.task_failed)
        self._actor_to_trial = {self.actor: "trial"}
        self._resetting_trials: set[str] = set()

    def actor_failed(self, actor: object, exception: Exception) -> None:
        self.calls.append(f"actor: {exception}")

    def task_failed(self, actor: object, exception: Exception) -> None:
        self.calls.append("task")


def fail_task(calls: Calls, error: Exception) -> None:
    """Let the manager that Tune would use handle the error, without a cluster."""
    with compat.lost_processes_as_failed_trials():
        manager: Any = object.__new__(tune_controller.RayActorManager)  # type: ignore[attr-defined]
    manager._failed_actor_ids = set()
    manager._cleanup_actor = lambda tracked_actor: None
    manager._actor_task_failed(calls.task, error)


def test_memory_kill_is_one_failed_trial() -> None:
    calls = Calls()
    fail_task(calls, OutOfMemoryError("too much"))
    assert calls.calls[0].startswith(f"actor: {compat.OUT_OF_MEMORY}")


def test_actor_lost_between_trials_is_called_back_once() -> None:
    calls = Calls()
    calls._resetting_trials.add("trial")
    fail_task(calls, RayActorError(error_msg="gone"))
    assert len(calls.calls) == 1
    assert calls._resetting_trials == set()


def test_tune_uses_the_replaced_manager() -> None:
    assert tune_controller.RayActorManager is RayActorManager  # type: ignore[attr-defined]
    assert "RayActorManager(" in source_of(tune_controller.TuneController.__init__)
    assert "self._actor_to_trial" in source_of(tune_controller.TuneController)
    assert "self._resetting_trials" in source_of(tune_controller.TuneController)


def test_tune_collects_errors_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trial, "local_path", str(tmp_path))
    trial = Trial("name", stub=True)
    assert compat.errors_of(trial) == ""
    trial.handle_error(RayActorError(error_msg="first"))
    trial.handle_error(RayActorError(error_msg="second"))
    assert compat.errors_of(trial).count("Failure # ") == 2
    assert compat.last_error(compat.errors_of(trial)).startswith("its process died: ")
    assert "second" in compat.last_error(compat.errors_of(trial))
    assert trial.num_failures == 2


def test_last_error_is_one_line() -> None:
    errors = "Failure # 1 (occurred at 9:00)\nfirst\nFailure # 2 (occurred at 9:05)\nsecond\n  reason\n"
    assert compat.last_error(errors) == "its process died: second reason"
    assert compat.last_error(f"Failure # 1 (at)\n{compat.OUT_OF_MEMORY}: x") == f"{compat.OUT_OF_MEMORY}: x"


# --- Train


def test_start_callback_has_trains_hooks() -> None:
    started: list[str] = []
    sizes: list[int] = []
    callback = compat.start_callback(started.append, sizes.append)
    callback.after_controller_start(SimpleNamespace(run_id="run"))
    callback.before_worker_group_start(SimpleNamespace(num_workers=2))
    assert (started, sizes) == (["run"], [2])
    bases = type(callback).__mro__[1:3]
    hooks = [name for name in vars(type(callback)) if name.startswith(("after_", "before_"))]
    assert hooks and all(any(name in vars(base) for base in bases) for name in hooks)


def test_train_passes_what_the_callback_reads() -> None:
    from ray.train.v2._internal.execution.context import TrainRunContext
    from ray.train.v2._internal.execution.worker_group import WorkerGroupContext

    assert "run_id" in TrainRunContext.__annotations__
    assert "num_workers" in WorkerGroupContext.__annotations__


def test_health_check_error_holds_its_cause() -> None:
    cause = RayActorError(error_msg="gone")
    assert compat.cause_of(WorkerHealthCheckFailedError("failed", cause)) is cause
    assert compat.cause_of(cause) is cause


def test_coordinator_is_named_and_has_its_methods() -> None:
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as module

    assert f'name="{compat.COORDINATOR}",\n        namespace="{compat.COORDINATOR}"' in source_of(module)
    actor = module._AutoscalingCoordinatorActor
    assert "requester_id" in inspect.signature(actor.cancel_request).parameters
    assert {"requester_id", "recompute"} <= set(inspect.signature(actor.get_reserved_resources).parameters)


def test_requester_is_named_as_train_names_it() -> None:
    from ray.train.v2._internal.execution.scaling_policy import scaling_policy

    assert 'f"train-{train_run_context.run_id}"' in source_of(scaling_policy)


def test_placement_group_table_names_the_creator() -> None:
    from ray._private.state import GlobalState
    from ray._raylet import PlacementGroupID
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]  # protobuf makes it
    from ray.util.placement_group import PlacementGroup

    assert "accessor.get_placement_group_table()" in source_of(GlobalState.placement_group_table)
    for field in ("creator_actor_id", "placement_group_id", "state"):
        assert field in PlacementGroupTableData.DESCRIPTOR.fields_by_name
    group_id = PlacementGroupID.from_random()
    assert PlacementGroup(PlacementGroupID(group_id.binary())).id == group_id


def test_train_has_the_helpers_that_are_left_out() -> None:
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    assert issubclass(TorchTrainer, DataParallelTrainer)
    made = source_of(DataParallelTrainer._create_default_callbacks)
    assert "DatasetsCallback(" in made and "PlacementGroupCleanerCallback()" in made


def test_interface_backend_has_trains_hooks() -> None:
    """A hook or a setting that Ray's backend for torch gains would be missing in ours."""
    torchs = TorchConfig().backend_cls
    hooks = {name for name in vars(torchs) if not name.startswith("_")}
    assert hooks <= set(vars(InterfaceBackend))
    assert GroupConfig("gloo").backend_cls.share_cuda_visible_devices == torchs.share_cuda_visible_devices
    assert GroupConfig("gloo").backend_cls.has_replica_groups == torchs.has_replica_groups


# --- heads and local clusters


def test_heads_have_the_call_that_tells_them() -> None:
    from ray.core.generated import gcs_service_pb2

    service, method = compat._CALL_OF_HEADS.removeprefix("/").split("/")
    package, name = service.rsplit(".", 1)
    assert gcs_service_pb2.DESCRIPTOR.package == package
    assert method in gcs_service_pb2.DESCRIPTOR.services_by_name[name].methods_by_name


def test_loopback_is_a_constant_of_ray() -> None:
    from ray._private import ray_constants, services

    assert "ray_constants.ENABLE_RAY_CLUSTER" in source_of(services.get_node_ip_address)
    before = ray_constants.ENABLE_RAY_CLUSTER
    with compat.loopback_only():
        assert ray_constants.ENABLE_RAY_CLUSTER is False
    assert before is ray_constants.ENABLE_RAY_CLUSTER


def test_services_that_are_left_out_have_their_names() -> None:
    from ray._private import ray_constants, services
    from ray.dashboard.modules.event.event_agent import EventAgent

    assert {"start_api_server", "start_monitor", "start_log_monitor"} <= vars(Node).keys()
    for starter in (services.start_raylet, services.start_api_server):
        assert "ray._private.utils.get_dashboard_dependency_error()" in source_of(starter)
    assert "ray_constants.DASHBOARD_ADDRESS" in source_of(EventAgent)
    assert ray_constants.KV_NAMESPACE_DASHBOARD
    with compat.needed_services_only(log_to_driver=True):
        assert Node.start_monitor.__name__ == "<lambda>" and Node.start_log_monitor.__name__ != "<lambda>"
    assert Node.start_monitor.__name__ == "start_monitor"


def test_trials_and_controllers_have_their_variables() -> None:
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    assert compat.IN_TRIALS in compat.variables_of_trials()
    assert not [name for name in compat.variables_of_trials() if name.startswith("AWS_")]
    assert compat.IN_CONTROLLERS in compat.variables_of_controllers()
    made = source_of(DataParallelTrainer._initialize_and_run_controller)
    assert "env_vars = get_env_vars_to_propagate()" in made
    assert (
        "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR,\n            DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE"
        in made
    )


def test_sessions_are_named_after_their_process(tmp_path: Path) -> None:
    assert re.search(r'f"session_\{date_str\}_\{os\.getpid\(\)\}"', source_of(Node.__init__))
    assert compat.temporary_folder_of(tmp_path) == tmp_path
    assert compat.temporary_folder_of(None).name == "ray"


def test_second_cluster_gets_its_own_token() -> None:
    program = """
import os
from ray._raylet import AuthenticationTokenLoader
from mnist_ray.ray_backend.compat import read_token_again

for token in ("a" * 64, "b" * 64):
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    read_token_again()
    assert token in str(AuthenticationTokenLoader.instance().get_token_for_http_header()), token
"""
    subprocess.run([sys.executable, "-c", program], check=True)
