"""Download addresses, from torchvision's own lists: this repository keeps none."""

from mnist_ray.data.files import DataFile


def addresses(file: DataFile) -> list[str]:
    """Return the addresses from which torchvision would download the file, in its order."""
    from torchvision import datasets  # takes 1.6 s to import

    source = getattr(datasets, file.torchvision_class)
    if isinstance(source.resources, dict):  # QMNIST: whole addresses by part; its `mirrors` are MNIST's
        listed = [address for part in source.resources.values() for address, _ in part]
        return [address for address in listed if address.rpartition("/")[2] == file.name]
    return [f"{mirror}{file.name}" for mirror in source.mirrors]
