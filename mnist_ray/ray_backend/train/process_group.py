"""How the ranks of a group reach one another: by the addresses that their nodes have in the cluster."""

import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

import ray.util
from ray.train.backend import Backend, BackendConfig

_SIOCGIFADDR = 0x8915  # "get interface address", netdevice(7)


@dataclass
class GroupConfig(BackendConfig):
    """Ray Train's configuration for torch, with gloo and NCCL on the interface of the address that the cluster knows.

    Otherwise gloo takes the interface that the machine's own name leads to: on many machines loopback, or none. The
    controller imports torch only for a group of several workers; a single one needs no process group.
    """

    backend: str

    @property
    def backend_cls(self) -> type[Backend]:
        return InterfaceBackend

    @property
    def train_func_context(self) -> Any:
        return _torch_config(self).train_func_context


class InterfaceBackend(Backend):
    """Ray Train's backend for torch, after a choice of each worker's interface."""

    share_cuda_visible_devices = True  # as the backend for torch has it

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        if len(worker_group) > 1:
            worker_group.execute(choose_interface)
            config = _torch_config(backend_config)
            config.backend_cls().on_start(worker_group, config)

    def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
        if len(worker_group) > 1:
            config = _torch_config(backend_config)
            config.backend_cls().on_training_start(worker_group, config)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        if len(worker_group) > 1:
            config = _torch_config(backend_config)
            config.backend_cls().on_shutdown(worker_group, config)


def _torch_config(config: Any) -> Any:
    from ray.train.torch import TorchConfig  # imports torch, which takes 3 s

    return TorchConfig(backend=config.backend)


def choose_interface() -> None:
    """Set the interface in a worker; what the user has set stays."""
    name = interface_of(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
    if name is not None:
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, name)


def interface_of(address: str) -> str | None:
    """Return the network interface that has an IPv4 address as its first one; None if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # an interface without an address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None
