"""How many parameters a model has and how many multiply-adds it takes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Count", "count"]


@dataclass(frozen=True)
class Count:
    """The two figures that papers compare networks by.

    Attributes:
        parameters: Elements of the trained tensors (running statistics are not trained).
        multiply_adds: Multiplications of the convolutions and dense layers for one image. The papers call
            them FLOPs, and leave batch norm, activations, pooling and element-wise operators out.
    """

    parameters: int
    multiply_adds: int


def count(module: nn.Module, input_size: int) -> Count:
    """Count a model's parameters and multiply-adds.

    The model is run once on its own device; on the meta device that costs no arithmetic.

    Args:
        module: Maps ``[1, 3, input_size, input_size]`` to logits.
        input_size: Height and width of the image in pixels.
    """
    total = 0

    def add(layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            total += output.numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            total += output.numel() * layer.in_features

    parameters = list(module.parameters())
    handles = [layer.register_forward_hook(add) for layer in module.modules()]
    training = module.training
    try:
        module.eval()
        with torch.no_grad():
            module(torch.zeros(1, 3, input_size, input_size, device=parameters[0].device))
    finally:
        module.train(training)
        for handle in handles:
            handle.remove()
    return Count(sum(p.numel() for p in parameters), total)
