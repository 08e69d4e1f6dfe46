"""Network, data and loop as tutorials write them, with torch and torchvision alone."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torchvision import datasets, transforms


def network() -> nn.Sequential:
    """Return mnist_ray's network, from torch's own layers, for normalised images."""

    def block(channels_in: int) -> list[nn.Module]:
        return [nn.Conv2d(channels_in, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)]

    return nn.Sequential(*block(1), *block(32), nn.Flatten(), nn.Linear(800, 10))


def images_of(folder: str, train: bool) -> datasets.MNIST:
    """Return one half of the data in a folder that torchvision reads."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    return datasets.MNIST(folder, train=train, transform=transform)


def train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, loader: Iterable[tuple[Tensor, Tensor]]
) -> tuple[int, int]:
    """Train on each batch and return the numbers of steps and of images."""
    criterion = nn.CrossEntropyLoss()
    num_steps = num_images = 0
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        num_steps += 1
        num_images += len(labels)
    return num_steps, num_images


def accuracy(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return the share of right answers, 0 to 1."""
    num_correct = num_images = 0
    model.eval()
    with torch.no_grad():
        for images, labels in loader:
            num_correct += int((model(images).argmax(dim=1) == labels).sum())
            num_images += len(labels)
    return num_correct / num_images
