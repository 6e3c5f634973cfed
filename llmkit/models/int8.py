"""Linear layers with int8 weights, for serving on CPUs.

The weights are symmetric, with one scale an output (Wu et al. 2020, arXiv:2004.09602). Activations are quantised while they
come, with one scale a row: what a text gives does not depend on the others of its batch. Products are summed in int32, on
processors with instructions for it (AVX-512 VNNI, AMX) by those.

They are kept in a file of their own name, so that transformers does not take whole numbers for weights: it finds no model
there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_model, save_model
from torch import nn
from transformers.pytorch_utils import Conv1D

FILE = "model.int8.safetensors"
_LARGEST = 127
_SCALE = ".weight_scale"


class Int8Linear(nn.Module):
    """A linear layer for inference."""

    weight: torch.Tensor
    """int8 of shape [outputs, inputs]."""
    weight_scale: torch.Tensor
    """What a step of the weights is worth, float32 of shape [outputs]."""
    bias: torch.Tensor | None
    """float32 of shape [outputs]."""

    def __init__(self, inputs: int, outputs: int, has_bias: bool):
        super().__init__()
        self.register_buffer("weight", torch.zeros(outputs, inputs, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(outputs))
        self.register_buffer("bias", torch.zeros(outputs) if has_bias else None)

    @classmethod
    def of(cls, layer: nn.Module) -> Int8Linear:
        """From a layer with floating-point weights."""
        weight, bias = _weight_and_bias(layer)
        made = cls(weight.shape[1], weight.shape[0], bias is not None)
        made.weight_scale = weight.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / _LARGEST
        made.weight = (weight / made.weight_scale[:, None]).round().to(torch.int8)
        made.bias = bias
        return made

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """From shape [..., inputs] to [..., outputs], in the dtype of the inputs."""
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / _LARGEST
        whole = (rows / scale).round_().to(torch.int8)
        result = torch._int_mm(whole, self.weight.t()).float().mul_(scale).mul_(self.weight_scale)
        if self.bias is not None:
            result.add_(self.bias)
        return result.reshape(*inputs.shape[:-1], -1).to(inputs.dtype)


def _weight_and_bias(layer: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight of shape [outputs, inputs] and bias of shape [outputs], in float32."""
    weight = layer.weight.t() if isinstance(layer, Conv1D) else layer.weight
    return weight.detach().float().contiguous(), None if layer.bias is None else layer.bias.detach().float()


def quantise(model: Any) -> list[str]:
    """Give a model on the CPU int8 weights in the linear layers of its body, in place; embeddings and head stay as they are.

    Returns:
        The names of these layers.
    """
    names = [
        name
        for name, layer in model.named_modules()
        if type(layer) in (nn.Linear, Conv1D)
        and name.startswith(f"{model.base_model_prefix}.")
        # Of a single input, torch._int_mm (2.13, CPU) gives no product.
        and _weight_and_bias(layer)[0].shape[1] > 1
    ]
    for name in names:
        model.set_submodule(name, Int8Linear.of(model.get_submodule(name)))
    return names


def save(model: Any, directory: Path) -> None:
    """Write config and weights of a quantised model."""
    model.config.save_pretrained(directory)
    save_model(model, str(directory / FILE))


def load(directory: str | Path, auto_class: str) -> Any:
    """A model that `save` has written.

    Raises:
        OSError, ValueError: the file is missing, or its weights are not those of the config.
    """
    place = Path(directory) / FILE
    if not place.is_file():
        raise OSError(f"{place} is missing")
    model = getattr(transformers, auto_class).from_config(
        transformers.AutoConfig.from_pretrained(directory), dtype=torch.float32
    )
    with safe_open(place, framework="pt") as file:
        names = [key.removesuffix(_SCALE) for key in file.keys() if key.endswith(_SCALE)]  # noqa: SIM118 (it is no mapping)
    for name in names:
        weight, bias = _weight_and_bias(model.get_submodule(name))
        model.set_submodule(name, Int8Linear(weight.shape[1], weight.shape[0], bias is not None))
    try:
        load_model(model, str(place))
    except RuntimeError as failure:
        raise ValueError(f"{place} does not fit the config: {failure}") from failure
    return model
