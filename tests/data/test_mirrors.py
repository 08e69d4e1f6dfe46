"""Every file of the table has an address in torchvision's lists."""

import pytest

from mnist_ray import data
from mnist_ray.data import mirrors


@pytest.mark.parametrize("name", [name for name in data.DATA_SETS if name != "digits"])
def test_torchvision_has_every_file(name: str) -> None:
    for file in data.DATA_SETS[name].files:
        addresses = mirrors.addresses(file)
        assert addresses and all(address.endswith(f"/{file.name}") for address in addresses)
        assert len(file.sha256) == 64
