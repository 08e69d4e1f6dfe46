"""How the ranks of a group reach one another: by the addresses that their nodes have in the cluster."""

import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

import ray.util
from ray.train.backend import Backend
from ray.train.torch import TorchConfig

_SIOCGIFADDR = 0x8915  # "get interface address", netdevice(7)


@dataclass
class GroupConfig(TorchConfig):
    """Ray Train's configuration, with gloo and NCCL on the interface by whose address the cluster knows the node.

    Otherwise gloo takes the interface that the machine's own name leads to: on many machines loopback, or none.
    """

    @property
    def backend_cls(self) -> type[Backend]:
        return InterfaceBackend


class InterfaceBackend(Backend):
    """Ray Train's backend for torch, after a choice of each worker's interface."""

    share_cuda_visible_devices = True  # as the backend for torch has it

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(choose_interface)
        TorchConfig().backend_cls().on_start(worker_group, backend_config)

    def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
        TorchConfig().backend_cls().on_training_start(worker_group, backend_config)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        TorchConfig().backend_cls().on_shutdown(worker_group, backend_config)


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
