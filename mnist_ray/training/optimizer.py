"""Adam: what a step needs of an optimizer, and torch's own as one."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from mnist_ray.training.distributed import sum_gradients
from mnist_ray.training.kernels.flat_adam import FlatAdam
from mnist_ray.training.kernels.selection import Kernels


class Optimizer(Protocol):
    """Moves parameters by their gradients. A step is `zero_grad`, backward, `sum_gradients`, `advance`, `apply`."""

    num_steps: int  # those that `advance` went on to

    def zero_grad(self) -> None:
        """Set the gradients to zero, in place."""

    def sum_gradients(self) -> None:
        """Add the gradients over all ranks. Raises RankLostError."""

    def advance(self, rate_factor: float = 1.0) -> None:
        """Go on to the next step's number; at any time before `apply`, and outside of a CUDA graph.

        rate_factor: by which the step's learning rate is multiplied.
        """

    def apply(self) -> None:
        """Move the parameters; only operations on the device."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return mean and mean_square, (P,) for P parameters, channels last, and num_steps, () int64."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` of either optimizer returned, in place."""


class TorchAdam:
    """torch.optim.AdamW as an `Optimizer`; without weight decay it is torch.optim.Adam.

    Its state is written as FlatAdam writes it, since a run may go on with or without GPUs.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float = 0.0) -> None:
        """parameters: on their final device and of their final dtype."""
        self.num_steps = 0
        self._parameters = list(parameters)
        self._learning_rate = learning_rate
        # then the step's number and its rate have to be on the device
        is_captured = self._parameters[0].device.type == "cuda"
        rate = torch.tensor(learning_rate, device=self._parameters[0].device) if is_captured else learning_rate
        # fused: a few kernels instead of some forty, which on a GPU cost more than the step's arithmetic
        self._adam = torch.optim.AdamW(
            self._parameters, lr=rate, weight_decay=weight_decay, capturable=is_captured, fused=is_captured
        )
        for parameter in self._parameters:
            # torch makes both in the first step, which may be the one that a CUDA graph captures
            parameter.grad = torch.zeros_like(parameter)
            self._adam.state[parameter] = {
                "step": torch.zeros((), device=parameter.device if is_captured else "cpu"),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def zero_grad(self) -> None:
        self._adam.zero_grad(set_to_none=False)

    def sum_gradients(self) -> None:
        sum_gradients(self._parameters)

    def advance(self, rate_factor: float = 1.0) -> None:
        """Go on to the next step's number and its rate. For its corrections torch counts steps in `apply`."""
        self.num_steps += 1
        [group] = self._adam.param_groups
        rate = self._learning_rate * rate_factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate

    def apply(self) -> None:
        self._adam.step()

    def state_dict(self) -> dict[str, Tensor]:
        return {
            "mean": torch.cat([_flattened(each) for each in self._of_each("exp_avg")]),
            "mean_square": torch.cat([_flattened(each) for each in self._of_each("exp_avg_sq")]),
            "num_steps": torch.tensor(self.num_steps),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, key in (("mean", "exp_avg"), ("mean_square", "exp_avg_sq")):
            targets = [_channels_last_view(each) for each in self._of_each(key)]
            for target, part in zip(targets, state[name].split([each.numel() for each in targets]), strict=True):
                target.copy_(part.view(target.shape))
        self.num_steps = int(state["num_steps"])
        for step in self._of_each("step"):
            step.fill_(self.num_steps)

    def _of_each(self, key: str) -> Sequence[Tensor]:
        return [self._adam.state[parameter][key] for parameter in self._parameters]


def optimizer_for(
    parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float, kernels: Kernels
) -> Optimizer:
    """Make the optimizer of a training. parameters: on their final device, of their final dtype and memory layout."""
    adam = FlatAdam if kernels.flat_adam else TorchAdam
    return adam(parameters, learning_rate, weight_decay)


def _channels_last_view(values: Tensor) -> Tensor:
    """View filters (F, C, H, W) as (F, H, W, C), and leave what has no such axes."""
    return values.permute(0, 2, 3, 1) if values.dim() == 4 else values


def _flattened(values: Tensor) -> Tensor:
    return _channels_last_view(values).reshape(-1)
