"""Adam over all parameters as one vector."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mnist_ray.training.distributed import summed_over_ranks


class FlatAdam:
    """An `Optimizer` (mnist_ray.training.optimizer) of one vector.

    Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization", algorithm 1, with its default constants. Weight
    decay is decoupled: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2, as in
    torch.optim.AdamW.

    The parameters become views of one vector and their gradients of another, so a step is ten operations whatever the
    number of layers, and workers add their gradients up in one exchange, in an order that nothing changes.
    torch.optim.Adam imports torch's compiler when it is first used: 1.5 to 1.9 s of CPU in every process that trains
    (docs/decisions/0006-one-vector.md).
    """

    BETAS = (0.9, 0.999)
    EPSILON = 1e-8

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float = 0.0) -> None:
        """parameters: on their final device, of their final dtype and memory layout."""
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.num_steps = 0
        parameters = list(parameters)
        self._values = torch.cat([_in_memory_order(parameter.detach()) for parameter in parameters])
        self.gradient = torch.zeros_like(self._values)
        self.mean = torch.zeros_like(self._values)
        self.mean_square = torch.zeros_like(self._values)
        # Where the step finds them when it is replayed as a CUDA graph: its numbers of Python are those of its capture.
        self._step_size, self._square_correction, self._kept = self._values.new_zeros(3).unbind()
        _make_views(parameters, self._values, self.gradient)

    def zero_grad(self) -> None:
        self.gradient.zero_()

    def sum_gradients(self) -> None:
        """Add the gradients over all ranks. Raises RankLostError."""
        summed_over_ranks(self.gradient)

    def advance(self, rate_factor: float = 1.0) -> None:
        """Go on to the next step's number and its rates."""
        self.num_steps += 1
        decay, square_decay = self.BETAS
        learning_rate = self.learning_rate * rate_factor
        self._step_size.fill_(learning_rate / (1 - decay**self.num_steps))
        self._kept.fill_(1 - learning_rate * self.weight_decay)
        self._square_correction.fill_(1 - square_decay**self.num_steps)

    @torch.no_grad()
    def apply(self) -> None:
        """Move the parameters by the step that `advance` went on to; only operations on the device."""
        decay, square_decay = self.BETAS
        if self.weight_decay:
            self._values.mul_(self._kept)
        self.mean.lerp_(self.gradient, 1 - decay)
        self.mean_square.mul_(square_decay).addcmul_(self.gradient, self.gradient, value=1 - square_decay)
        root = (self.mean_square / self._square_correction).sqrt_().add_(self.EPSILON)
        self._values.sub_((self.mean / root).mul_(self._step_size))

    def state_dict(self) -> dict[str, Tensor]:
        """Return mean and mean_square: (P,), in the order of the parameters in memory, and num_steps: () int64."""
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
