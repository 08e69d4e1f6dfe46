"""Every private or undocumented part of Ray 2.60 in use, each with its reason.

tests/ray_backend/test_compat.py fails when one of these parts moves. Importing this module does not import Ray.
"""

import contextlib
import enum
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

logger = logging.getLogger(__name__)

# --- environment

# Read by Ray when it is imported or started; a value that the user has set stays.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own progress tables
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the default of two seconds delays the end of short trainings
    # How long a group of workers may wait for its places before Ray Train counts anew how many there are. Ray Train
    # learns up to 20 s late that a node is gone, so its first count after a loss is often too high. Places that are
    # free are given within a second; the default is a minute.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # prints came twice
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune would return as if it had finished; Ctrl-C ends the whole job here
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # three more files a trial that nothing reads
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",  # a list of all trials, every ten seconds, that nothing reads
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial reports why, and has no score
}

# For a cluster of this process alone.
LOCAL_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process that waits for notices that nothing gives there
    "RAY_prestart_worker_first_driver": "0",  # Ray would start a process for each CPU that has not imported anything
    "RAY_preload_python_modules": "mnist_ray.ray_backend.preload",
}

# Of a raylet: how many processes it keeps, and how many it starts at once; by default as many as the machine has CPUs.
PROCESS_LIMITS = ("RAY_num_workers_soft_limit", "RAY_worker_maximum_startup_concurrency")

IN_TRIALS = "PL_DISABLE_FORK"  # a variable that Tune sets in its trials' processes
IN_CONTROLLERS = "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC"  # and one that Ray Train sets in its own, and in its workers


def folder_options(folder: Path | None) -> dict[str, str]:
    """Return the options of `ray.init` that put Ray's temporary files into a folder; Ray has no public one."""
    return {} if folder is None else {"_temp_dir": str(folder)}


def temporary_folder_of(folder: Path | None) -> Path:
    """Return the folder below which `ray.init` makes the folder of a session."""
    from ray._common.utils import get_default_ray_temp_dir

    return folder or Path(get_default_ray_temp_dir())  # type: ignore[no-untyped-call]


def session_folders(parent: Path, pid: int) -> list[Path]:
    """Return the folders of the sessions that a process began; Ray puts the process's id at the end of their names."""
    return sorted(parent.glob(f"session_*_{pid}"))


@contextlib.contextmanager
def loopback_only() -> Iterator[None]:
    """Make a cluster that starts in this block listen on the loopback alone.

    Ray does that by itself on macOS and Windows. On Linux its servers listen on all interfaces, and the private option
    for a node's address turns 127.0.0.1 into the machine's own address.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


class HeadAnswer(enum.Enum):
    """What a server answers to a call that every Ray head has."""

    HEAD = "a head"
    REFUSED = "a head that wants another token, or another part of Ray"
    OTHER = "no head"


_CALL_OF_HEADS = "/ray.rpc.NodeInfoGcsService/CheckAlive"


def ask_head(address: str, seconds: float) -> HeadAnswer:
    """Ask the server at HOST:PORT whether it is a Ray head. The token goes only to a server that asks for one.

    `ray.init` tries any port that accepts connections for more than eight minutes, without heeding Ctrl-C.
    """
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return HeadAnswer.REFUSED  # Ray's certificates would be needed
    import grpc
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary(_CALL_OF_HEADS)

        def status(metadata: Any = None) -> Any:
            try:
                call(b"", timeout=seconds, metadata=metadata)
            except grpc.RpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        answer = status()
        if answer is grpc.StatusCode.UNAUTHENTICATED:
            token = get_auth_headers_if_auth_enabled({})
            answer = status([(name.lower(), value) for name, value in token.items()]) if token else answer
    if answer is grpc.StatusCode.OK:
        return HeadAnswer.HEAD
    return HeadAnswer.REFUSED if answer is grpc.StatusCode.UNAUTHENTICATED else HeadAnswer.OTHER


def read_token_again() -> None:
    """Forget the token, and the mode, that this process has read for an earlier cluster.

    Ray reads both once a process, so a notebook or a program that joins a second cluster sends the first one's token.
    The order is that of ray._private.authentication_test_utils: the loader asks the configuration for the mode.
    """
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def address_of_started_cluster() -> str | None:
    """Return the address of the latest cluster that `ray start` has made or joined on this machine, if it listens."""
    from ray._private.utils import read_ray_address

    with contextlib.suppress(OSError):
        return read_ray_address() or None
    return None


def running_heads() -> list[str]:
    """Return the addresses of all Ray heads whose processes run on this machine."""
    from ray._private.services import find_gcs_addresses

    return sorted(find_gcs_addresses())  # type: ignore[no-untyped-call]


RAYLET = "Ray's process of this machine (raylet)"


def service_addresses() -> dict[str, str]:
    """Return HOST:PORT of the two processes without which this driver can do nothing, by name."""
    import ray

    node_id = ray.get_runtime_context().get_node_id()
    (own,) = [node for node in ray.nodes() if node["NodeID"] == node_id]  # type: ignore[no-untyped-call]
    return {
        "Ray's head process (GCS)": ray.get_runtime_context().gcs_address,
        RAYLET: f"{own['NodeManagerAddress']}:{own['NodeManagerPort']}",
    }


@contextlib.contextmanager
def failed_node_ended() -> Iterator[None]:
    """End the processes of a node that `ray.init` starts in this block and gives up: Ray itself leaves them running."""
    from ray._private.node import Node

    nodes: list[Any] = []
    start = Node.start_head_processes

    def note_and_start(node: Any) -> None:
        nodes.append(node)
        start(node)  # type: ignore[no-untyped-call]

    Node.start_head_processes = note_and_start  # type: ignore[method-assign]
    try:
        yield
    except BaseException:
        for node in nodes:
            node.kill_all_processes(check_alive=False, allow_graceful=False)
        raise
    finally:
        Node.start_head_processes = start  # type: ignore[method-assign]


@contextlib.contextmanager
def needed_services_only(log_to_driver: bool) -> Iterator[None]:
    """Leave out of a cluster that starts in this block what nothing here uses: dashboard, autoscaler, log printer.

    Ray starts each even with `include_dashboard=False`, and waits for the dashboard. The agent of the node is started
    as in an installation without ray[default]: otherwise it tries a fixed port for 3.3 s where another cluster of the
    machine has that port. All this takes 3 s and as much CPU of two cores, twice as long beside another cluster.
    log_to_driver: keep the log printer.
    """
    from ray._private import ray_constants, utils
    from ray._private.node import Node

    def start_no_dashboard(node: Any, **_: Any) -> None:
        node._webui_url = ""
        # The agent asks for the dashboard's address every second, and logs a traceback each time it finds none.
        key, space = ray_constants.DASHBOARD_ADDRESS.encode(), ray_constants.KV_NAMESPACE_DASHBOARD
        node.get_gcs_client().internal_kv_put(key, b"none", True, space)

    left_out: list[tuple[Any, str, Any]] = [
        (utils, "get_dashboard_dependency_error", lambda: ImportError("left out")),
        (Node, "start_api_server", start_no_dashboard),
        (Node, "start_monitor", lambda _node: None),
    ]
    if not log_to_driver:
        left_out.append((Node, "start_log_monitor", lambda _node: None))
    kept = [(home, name, getattr(home, name)) for home, name, _ in left_out]
    for home, name, replacement in left_out:
        setattr(home, name, replacement)
    try:
        yield
    finally:
        for home, name, original in kept:
            setattr(home, name, original)


PRESTART_S = 5.0
KEEP_PRESTARTED_S = 600


def prestart_workers(num_processes: int, variables: Mapping[str, str], for_children: bool = False) -> int:
    """Have this machine's raylet start processes, which it keeps for actors whose runtime environment is the same.

    Returns how many will join the cluster: all, or none where the call failed.

    variables: all of that environment. for_children: the actors are created by one with an environment of its own; Ray
    compares environments as texts, and writes those as C++ does. Ray's own way to start processes is a private call of
    its scheduler. A call that fails costs only the gain.
    """
    import grpc
    import ray
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
    from ray._private.utils import get_runtime_env_info
    from ray.core.generated.node_manager_pb2 import PrestartWorkersRequest  # type: ignore[attr-defined]  # protobuf makes it
    from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub
    from ray.runtime_env import RuntimeEnv

    environment = get_runtime_env_info(RuntimeEnv(env_vars=dict(variables)))
    if for_children:
        compact = json.dumps({"env_vars": dict(variables)}, sort_keys=True, separators=(",", ":"))
        environment.serialized_runtime_env = compact
    request = PrestartWorkersRequest(
        job_id=bytes.fromhex(ray.get_runtime_context().get_job_id()),
        runtime_env_info=environment,
        keep_alive_duration_secs=KEEP_PRESTARTED_S,
        num_workers=num_processes,
    )
    metadata = [(name.lower(), value) for name, value in get_auth_headers_if_auth_enabled({}).items()]
    address = service_addresses()[RAYLET]
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            stub = NodeManagerServiceStub(channel)  # type: ignore[no-untyped-call]
            stub.PrestartWorkers(request, metadata=metadata, timeout=PRESTART_S)
        except grpc.RpcError as error:
            logger.debug("no processes were started ahead: %s", error)
            return 0
    return num_processes


def num_started_workers() -> int:
    """Return how many processes have joined the cluster so far, this one and those that have ended among them."""
    from ray._private.state import state

    return len(state._connect_and_get_accessor().get_worker_table())


# --- uploads


def upload_bytes(folder: Path) -> int:
    """Return the size of what `ray job submit --working-dir` makes of a folder, packed by Ray itself.

    Ray has no public way to learn the size before the upload, which fails late and with a traceback.
    """
    from ray._private.runtime_env.packaging import create_package

    with tempfile.TemporaryDirectory() as temporary:
        package = Path(temporary) / "package.zip"
        create_package(str(folder), package, include_gitignore=True, logger=logging.getLogger(__name__))
        return package.stat().st_size


def most_upload_bytes() -> int:
    """Return the size of the largest package that Ray takes."""
    from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE

    return int(GCS_STORAGE_MAX_SIZE)


# --- jobs


class AnswerError(Exception):
    """An HTTP answer of the job server whose status is an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status
        self.text = text


class TimedRequests:
    """A mixin for Ray's JobSubmissionClient: a time limit for every request; Ray's own client waits without end.

    The methods raise AnswerError where Ray's raise a RuntimeError with a traceback of the server in its text. They
    raise OSError for a connection that fails (all errors of requests are OSErrors), and Ray's AuthenticationError.
    """

    def __init__(self, address: str, connect_s: float, answer_s: float) -> None:
        self._connect_s, self._answer_s = connect_s, answer_s
        with _only_address(address):
            super().__init__(address)  # type: ignore[call-arg]

    def get_json(self, endpoint: str, answer_s: float | None = None) -> Any:
        """Return the JSON at an endpoint of the dashboard; None where the answer is no JSON.

        answer_s: another time limit for the answer.
        """
        answer = self._do_request("GET", endpoint, answer_s)
        if answer.status_code != 200:
            self._raise_error(answer)
        try:
            return answer.json()
        except ValueError:
            return None

    def _check_connection_and_version(self, *_: object, **__: object) -> None:
        """Leave the check of the server's version to `connect`, whose messages name the address and the remedy."""

    def _do_request(self, method: str, endpoint: str, answer_s: float | None = None, **options: Any) -> Any:
        limits_s = (self._connect_s, answer_s or self._answer_s)
        return super()._do_request(method, endpoint, timeout=limits_s, **options)  # type: ignore[misc]

    def _raise_error(self, r: Any) -> NoReturn:
        raise AnswerError(r.status_code, r.text)


@contextlib.contextmanager
def _only_address(address: str) -> Iterator[None]:
    """Make Ray's client use `address`: the client prefers $RAY_ADDRESS to its argument, and this variable to both."""
    name = "RAY_API_SERVER_ADDRESS"
    before = os.environ.get(name)
    os.environ[name] = address
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


# --- Tune

OUT_OF_MEMORY = "its process was killed because the node ran out of memory"


def keep_credentials_from_trials() -> None:
    """Let Tune no longer give its trials the driver's AWS keys: Ray writes them to each node's log.

    Tune gives a fixed set of variables to each trial as a runtime environment, and has no setting for that.
    """
    from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE

    ENV_VARS_TO_PROPAGATE.difference_update([name for name in ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")])


def variables_of_trials() -> dict[str, str]:
    """Return the environment variables that Tune gives its trials' processes."""
    keep_credentials_from_trials()
    from ray.tune.execution.class_cache import _ActorClassCache

    class Trainable:
        pass

    options: dict[str, Any] = _ActorClassCache().get(Trainable)._default_options  # type: ignore[no-untyped-call]
    return dict(options["runtime_env"]["env_vars"])


@contextlib.contextmanager
def lost_processes_as_failed_trials() -> Iterator[None]:
    """Let Tune take the loss of a trial's process, whatever the reason, for one failure of that trial.

    Two things of Ray 2.60 are in the way (air/execution/_internal/actor_manager.py, _actor_task_failed):

    - A kill by Ray's memory monitor raises OutOfMemoryError for the task that ran in the process. This error is no
      RayActorError, and an error that is neither RayActorError nor RayTaskError ends the whole search. Starting the
      search again would cost every other trial in flight its epoch and its count of failures.
    - A process that dies between two trials is noticed when the second trial is handed to the process. Tune is called
      back twice then. It takes the second call, when the trial waits for its new start already, for the trial's end.
      It also goes on believing that the trial is being handed over, and gives the trial no other process.
    """
    from ray.air.execution._internal import RayActorManager
    from ray.exceptions import OutOfMemoryError, RayActorError
    from ray.tune.execution import tune_controller

    class ActorManager(RayActorManager):
        def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
            if isinstance(exception, OutOfMemoryError):
                exception = RayActorError(error_msg=f"{OUT_OF_MEMORY}: {exception}")
            if isinstance(exception, RayActorError):
                _call_back_once(tracked_actor_task)
            super()._actor_task_failed(tracked_actor_task, exception)

    tune_controller.RayActorManager = ActorManager  # type: ignore[attr-defined]
    try:
        yield
    finally:
        tune_controller.RayActorManager = RayActorManager  # type: ignore[attr-defined]


def _call_back_once(task: Any) -> None:
    """Leave it to the actor's own callback to report an actor that died while a trial was handed to it."""
    actor = task._tracked_actor
    controller = getattr(actor._on_error, "__self__", None)  # Tune's, whose method the callback is
    if controller is None:
        return
    trial = controller._actor_to_trial.get(actor)
    if trial in controller._resetting_trials:
        controller._resetting_trials.remove(trial)
        task._on_error = None


def errors_of(trial: Any) -> str:
    """Return all errors of a Tune trial; `Trial.get_error` reads a copy, which lags behind."""
    return Path(trial.error_file).read_text() if trial.error_file else ""


def last_error(errors: str) -> str:
    """Return the last of a Tune trial's errors in one line."""
    _, _, last = errors.rpartition("Failure # ")[2].partition("\n")
    reason = " ".join(last.split())[:300]
    return reason if reason.startswith(OUT_OF_MEMORY) else f"its process died: {reason}"


# --- Train


def start_callback(after_controller_start: Callable[[str], None], before_group_start: Callable[[int], None]) -> Any:
    """Return a callback for Ray Train's controller, in whose process its functions are called.

    after_controller_start: gets Ray Train's id of the run.
    before_group_start: gets the number of workers of a group that is going to start.
    Before Ray Train decides what follows a failure, the cluster's nodes are counted again. Ray Train's public callbacks
    have no such moments.
    """
    from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

    class StartCallback(ControllerCallback, WorkerGroupCallback):
        def after_controller_start(self, train_run_context: Any) -> None:
            self.run_id = train_run_context.run_id
            after_controller_start(self.run_id)

        def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
            count_nodes_again(self.run_id)

        def before_worker_group_start(self, worker_group_context: Any) -> None:
            before_group_start(worker_group_context.num_workers)

    return StartCallback()


def variables_of_controllers() -> dict[str, str]:
    """Return the environment variables that Ray Train gives the process of a controller."""
    from ray.train.v2._internal.constants import (
        DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE,
        get_env_vars_to_propagate,
    )

    return {IN_CONTROLLERS: DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE} | get_env_vars_to_propagate()


def trainer_without_helpers() -> type:
    """Return Ray Train's trainer, without two actors of each run that serve nothing here, 2.5 s of CPU each.

    One hands out parts of Ray's data sets. The other removes the placement group of a controller that died, which the
    driver does (`remove_placement_groups`).
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    class Trainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]  # mypy sees the first version
            helpers = (DatasetsCallback, PlacementGroupCleanerCallback)
            return [callback for callback in callbacks if not isinstance(callback, helpers)]

    return Trainer


def cause_of(worker_error: Exception) -> Exception:
    """Return the error inside the one by which Ray Train reports that a worker failed its health check."""
    return getattr(worker_error, "health_check_failure", worker_error)


COORDINATOR = "AutoscalingCoordinator"
COORDINATOR_S = 5.0


def withdraw_request(run_id: str) -> None:
    """Take back what a controller of Ray Train has asked the cluster for.

    A controller takes its request back only when it ends in good order. Otherwise the request stays reserved for
    three minutes, and an elastic group starts with what is left.
    """
    with _coordinator() as (coordinator, get):
        get(coordinator.cancel_request.remote(_requester(run_id)), timeout=COORDINATOR_S)


def count_nodes_again(run_id: str) -> None:
    """Make Ray count the cluster's nodes now; otherwise Ray Train learns up to 20 s later that a node is gone."""
    with _coordinator() as (coordinator, get):
        get(coordinator.get_reserved_resources.remote(_requester(run_id), recompute=True), timeout=COORDINATOR_S)


@contextlib.contextmanager
def _coordinator() -> Iterator[tuple[Any, Any]]:
    """Yield Ray's actor that counts what the cluster has for whom, and `ray.get`; leave the block if it is gone."""
    import ray

    with contextlib.suppress(ValueError, ray.exceptions.RayError):
        yield ray.get_actor(COORDINATOR, namespace=COORDINATOR), ray.get


def _requester(run_id: str) -> str:
    return f"train-{run_id}"


def remove_placement_groups(controller: Any) -> None:
    """Free what the workers of one controller had: that stays taken when the controller dies, until the job ends.

    The public way to a placement group that another process made needs its name; Ray Train gives none. The public table
    of all placement groups does not say who made them.
    """
    from ray._private.state import state
    from ray._raylet import PlacementGroupID
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]  # protobuf makes it
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    for entry in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(entry)
        is_removed = group.state == PlacementGroupTableData.REMOVED
        if group.creator_actor_id == controller._actor_id.binary() and not is_removed:
            remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))
