"""A cluster of this machine alone: its start, who can reach it, and what it leaves behind."""

import json
import os
import stat
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import pytest

from mnist_ray.ray_backend.cluster import STARTING, _noted_start, make_token, start_remedy
from mnist_ray.record.process import this_process
from tests.ray_head import REPOSITORY

# In a process of its own: others of this test session may have a cluster.
PROGRAM = """
import sys
from pathlib import Path

from ray._private.node import Node

from mnist_ray.ray_backend.cluster import NUM_LOCAL_STARTS, connected

start, nodes = Node.start_ray_processes, []


def fail_at_first(node):
    nodes.append(node)
    if len(nodes) < NUM_LOCAL_STARTS:
        raise Exception("the node timed out")
    start(node)


Node.start_ray_processes = fail_at_first
with connected("local", Path(sys.argv[1]), verbose=False):
    print("alive", [node.any_processes_alive() for node in nodes])
"""


def test_failed_local_start_is_repeated() -> None:
    with tempfile.TemporaryDirectory(prefix="mr-", dir="/tmp") as folder:  # sockets lie in it
        done = subprocess.run([sys.executable, "-c", PROGRAM, folder], capture_output=True, text=True, check=True)
    assert "alive [False, False, True]" in done.stdout
    assert done.stderr.count("starting it again: the node timed out") == 2


STUCK = """
import atexit, os, select, signal, sys, time
from pathlib import Path

from mnist_ray.ray_backend.cluster import connected

with connected("local", Path(sys.argv[1]), verbose=False):
    import ray

    class Actor:
        def pid(self):
            atexit.register(time.sleep, 60)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            return os.getpid()

    actor = ray.remote(Actor).remote()
    handle = os.pidfd_open(ray.get(actor.pid.remote()))
    del actor  # Ray ends the process
    time.sleep(1)
print("gone" if select.select([handle], [], [], 0)[0] else "left behind")
"""


def test_stuck_worker_is_not_left_behind() -> None:
    """A worker that cannot end by itself."""
    with tempfile.TemporaryDirectory(prefix="mr-", dir="/tmp") as folder:  # sockets lie in it
        done = subprocess.run([sys.executable, "-c", STUCK, folder], capture_output=True, text=True, check=True)
    assert done.stdout == "gone\n", done.stderr


REACHABLE = """
import json, os, stat, subprocess, sys
from pathlib import Path

from mnist_ray.ray_backend.cluster import connected
from mnist_ray.ray_backend.compat import HeadAnswer, ask_head
from tests.ray_head import descendants

with connected("local", Path(sys.argv[1]), verbose=False):
    import ray

    ours = {os.getpid(), *descendants(os.getpid())}
    lines = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
    open_at = [line.split()[3] for line in lines if any(f"pid={pid}," in line for pid in ours)]
    address = ray.get_runtime_context().gcs_address
    os.environ["RAY_AUTH_MODE"] = "disabled"  # for the question alone: it is sent without a token
    import grpc

    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")(b"", timeout=5)
            answer = "OK"
        except grpc.RpcError as error:
            answer = error.code().name
    (session,) = [path for path in Path(sys.argv[1]).glob("session_2*") if path.is_dir()]
    print(json.dumps({"open_at": open_at, "answer": answer, "mode": stat.S_IMODE(session.stat().st_mode)}))
"""


@pytest.mark.slow
def test_only_this_machine_reaches_it() -> None:
    """Every port is the loopback's, a question without the token is refused, and the files are this user's alone."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with tempfile.TemporaryDirectory(prefix="mr-", dir="/tmp") as folder:
        command = [sys.executable, "-c", REACHABLE, folder]
        done = subprocess.run(
            command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=200
        )
        assert done.returncode == 0, done.stderr
        assert not list(Path(folder).glob("mnist_ray-starting*"))
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["open_at"] and {place.rpartition(":")[0] for place in seen["open_at"]} <= {
        "127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
    }
    assert seen["answer"] == "UNAUTHENTICATED"
    assert seen["mode"] == 0o700


def ended_process() -> "tuple[int, dict[str, object]]":
    """Return the id of a process that has ended, and its identity as the process itself noted it."""
    program = (
        "import json; from dataclasses import asdict; from mnist_ray.record.process import this_process; "
        "print(json.dumps(asdict(this_process())))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    identity = json.loads(done.stdout)
    return identity["pid"], identity


def session_of(parent: Path, pid: int) -> Path:
    folder = parent / f"session_2026-11-27_12-52-08_741801_{pid}"
    folder.mkdir(parents=True)
    return folder


def test_folders_of_killed_starts_are_removed(tmp_path: Path) -> None:
    """Only the sessions of a noted process that is gone: other runs, other programs and other users keep theirs."""
    pid, identity = ended_process()
    (tmp_path / f"{STARTING}{pid}.json").write_text(json.dumps(identity))
    (tmp_path / f"{STARTING}1.json").write_text(json.dumps({**asdict(this_process()), "pid": os.getpid()}))
    left, running, foreign = (session_of(tmp_path, each) for each in (pid, 1, pid + 1))
    with _noted_start(tmp_path):
        assert (tmp_path / f"{STARTING}{os.getpid()}.json").exists()
    assert not left.exists() and running.exists() and foreign.exists()
    assert [path.name for path in tmp_path.glob(f"{STARTING}*")] == [f"{STARTING}1.json"]


def test_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def start() -> None:
        with _noted_start(tmp_path):
            session_of(tmp_path, os.getpid())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start()
    assert list(tmp_path.iterdir()) == []


def test_token_is_made_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    make_token()
    file = tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and len(file.read_text()) == 64
    make_token()
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_home_without_write_access_is_no_hindrance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("a home that no folder can be made in, whoever tries")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    make_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("AF_UNIX path length cannot exceed 107 bytes: /x"), "is too long a path for sockets"),
        (PermissionError(13, "Permission denied", "/tmp/ray/session_1"), "/tmp/ray/session_1 must be writable"),
        (Exception("The current node timed out during startup"), "when the machine is less busy"),
    ],
    ids=["long", "foreign", "busy"],
)
def test_remedy_fits_the_reason(error: Exception, said: str) -> None:
    assert said in start_remedy(error, str(error), Path("/tmp/ray"))
