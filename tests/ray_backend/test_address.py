"""Addresses at which no Ray head answers: each is refused in seconds, with what answers there and what to type."""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest

from mnist_ray.cli.main import main
from mnist_ray.errors import SpecError
from mnist_ray.ray_backend import address as module
from mnist_ray.ray_backend.address import Target, checked_head, target_of
from tests.ray_head import REPOSITORY, free_ports


@contextlib.contextmanager
def server(answer: bytes | None) -> Iterator[str]:
    """Yield the address of a server that sends an answer to each connection and keeps it open; None: says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection = listener.accept()[0]
                    kept.append(connection)
                    if answer is not None:
                        connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    for connection in kept:
        connection.close()


class WebServer(BaseHTTPRequestHandler):
    server_version = "nginx/1.27\x1b[31m"

    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def web_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), WebServer) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{made.server_port}"
        made.shutdown()


@contextlib.contextmanager
def grpc_server() -> Iterator[str]:
    with futures.ThreadPoolExecutor(1) as pool:
        made = grpc.server(pool)
        port = made.add_insecure_port("127.0.0.1:0")
        made.start()
        yield f"127.0.0.1:{port}"
        made.stop(0)


def refusal(address: str, origin: str = "--address") -> str:
    with pytest.raises(SpecError) as caught:
        checked_head(Target(address, origin))
    return str(caught.value)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (web_server, "a web server answers there (nginx/1.27[31m"),
        (grpc_server, "something else answers there"),
        (lambda: server(b"SSH-2.0-OpenSSH_9.2\r\n"), "something else answers there ('SSH-2.0-OpenSSH_9.2')"),
        (lambda: server(None), "something accepts connections there but does not answer"),
        (lambda: server(b'HTTP/1.0 200 OK\r\n\r\n{"ray_version": "2.60.0"}'), "a Ray dashboard answers there"),
    ],
    ids=["web", "grpc", "ssh", "silent", "dashboard"],
)
def test_other_servers_are_named(
    made: Callable[[], contextlib.AbstractContextManager[str]], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 1.0)
    with made() as address:
        began = time.monotonic()
        message = refusal(address)
    assert time.monotonic() - began < 10
    assert message.startswith(f"--address {address}: {said}")
    assert "leave --address out" in message and message.isprintable()


def test_run_refuses_a_web_server(capsys: pytest.CaptureFixture[str]) -> None:
    """The whole command ends in seconds; without the question to the head it took more than eight minutes."""
    with web_server() as address:
        assert main(["doctor", "--address", address]) == 2
    assert "a web server answers there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://HEAD:8265", "use 'mnist-ray submit'"),
        ("ray://HEAD:10001", "a run joins a Ray head, at HOST:6379"),
        ("HEAD", "write HOST:PORT"),
        ("HEAD:x", "write HOST:PORT"),
        ("HEAD:70000", "write HOST:PORT"),
    ],
)
def test_wrong_addresses_are_explained(address: str, said: str) -> None:
    assert said in refusal(address)


def test_closed_port_is_named() -> None:
    (port,) = free_ports(1)
    assert "no Ray cluster answers there (Connection refused)" in refusal(f"127.0.0.1:{port}")


def test_variable_is_named_as_the_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy fits where the address came from; following it works."""
    (port,) = free_ports(1)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    target = target_of(None)
    message = refusal(target.address, target.origin)
    assert message.startswith(f"RAY_ADDRESS=127.0.0.1:{port}: ") and "unset RAY_ADDRESS" in message
    assert "--address" not in message
    assert target_of("HOST:1").origin == "--address"
    monkeypatch.delenv("RAY_ADDRESS")
    assert target_of(None).is_local


def test_auto_joins_no_private_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "address_of_started_cluster", lambda: None)
    monkeypatch.setattr(module, "running_heads", lambda: ["10.0.0.1:5000"])
    message = refusal("auto", "RAY_ADDRESS")
    assert message.startswith("RAY_ADDRESS=auto: no Ray cluster was started on this machine with 'ray start'")
    assert "Ray runs at 10.0.0.1:5000, private to the process that started it" in message


def test_address_imports_no_ray() -> None:
    program = "import sys, mnist_ray.ray_backend.address; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
