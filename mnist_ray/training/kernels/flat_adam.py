"""Adam over all parameters as one vector."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Adam:
    """Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization", algorithm 1, with its default constants.

    The parameters become views of one vector and their gradients of another, so a step is ten operations whatever the
    number of layers, and workers add their gradients up in one exchange, in an order that nothing changes.
    torch.optim.Adam imports its compiler when it is first used: 2.6 s of CPU in every process that trains.
    """

    BETAS = (0.9, 0.999)
    EPSILON = 1e-8

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> None:
        """Call it when the parameters are where they are to stay: device, dtype, memory layout."""
        self.learning_rate = learning_rate
        self.num_steps = 0
        parameters = list(parameters)
        self._values = torch.cat([_in_memory_order(parameter.detach()) for parameter in parameters])
        self.gradient = torch.zeros_like(self._values)
        self.mean = torch.zeros_like(self._values)
        self.mean_square = torch.zeros_like(self._values)
        # Where the step finds them when it is replayed as a CUDA graph: its numbers of Python are those of its capture.
        self._step_size, self._square_correction = self._values.new_zeros(2).unbind()
        _make_views(parameters, self._values, self.gradient)

    def zero_grad(self) -> None:
        self.gradient.zero_()

    def step(self) -> None:
        self.advance()
        self.apply()

    def advance(self) -> None:
        """Go on to the next step's number and its rates."""
        self.num_steps += 1
        decay, square_decay = self.BETAS
        self._step_size.fill_(self.learning_rate / (1 - decay**self.num_steps))
        self._square_correction.fill_(1 - square_decay**self.num_steps)

    @torch.no_grad()
    def apply(self) -> None:
        """Move the parameters by that step; only operations on the device."""
        decay, square_decay = self.BETAS
        self.mean.lerp_(self.gradient, 1 - decay)
        self.mean_square.mul_(square_decay).addcmul_(self.gradient, self.gradient, value=1 - square_decay)
        root = (self.mean_square / self._square_correction).sqrt_().add_(self.EPSILON)
        self._values.sub_((self.mean / root).mul_(self._step_size))

    def tensors(self) -> list[Tensor]:
        """All that a step changes, the parameters among it."""
        return [self._values, self.gradient, self.mean, self.mean_square]

    def state_dict(self) -> dict[str, Tensor]:
        """mean and mean_square: (P,) for P parameters; num_steps: () int64."""
        return {"mean": self.mean, "mean_square": self.mean_square, "num_steps": torch.tensor(self.num_steps)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.mean.copy_(state["mean"])
        self.mean_square.copy_(state["mean_square"])
        self.num_steps = int(state["num_steps"])


def _make_views(parameters: Iterable[nn.Parameter], values: Tensor, gradient: Tensor) -> None:
    start = 0
    for parameter in parameters:
        shape, strides = parameter.shape, parameter.stride()
        parameter.data = values.as_strided(shape, strides, start)
        parameter.grad = gradient.as_strided(shape, strides, start)
        start += parameter.numel()


def _in_memory_order(values: Tensor) -> Tensor:
    """(P,): the elements as they lie in memory, channels last or not."""
    return values.as_strided((values.numel(),), (1,))
