"""Width transfer by maximal update parametrisation, muP (Yang et al. 2022, Tensor Programs V, table 8, for Adam).

What is tuned on a narrow model, of `base_width`, serves a wider one. With m = width / base width:

    parameter                                  standard deviation   learning rate   multiplier in the forward pass
    embeddings, biases, norms, output layer    1                    1               1
    hidden matrices                            1 / sqrt(m)          1 / m           1
    logits                                                                          1 / m

A checkpoint has to give the same in plain transformers, where Llama and GPT-2 know no multiplier of the logits. Under Adam a
multiplier is the same as a parameter that begins, and learns, by that much smaller (Yang & Hu 2021, the symmetry of
abc-parametrisations). So the gain of the last norm begins at 1 / m and has the learning rate 1 / m: it stands before the
output layer, and serves a tied one as well.

Heads keep their width and become more. The scale of attention, 1 / head width in muP, is then the same constant at all widths.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from llmkit.errors import ConfigError
from llmkit.models.initialisation import matrices

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Architectures whose every part is one of the table's. A router, a norm of gain 1 + weight or an embedding that is multiplied
# by the root of the width would each need a rule of its own.
SERVED = ("gpt2", "granite", "llama", "mistral", "qwen2", "qwen3")


def apply_mup(model: PreTrainedModel, base_width: int) -> None:
    """Scale the weights of a new model in place, as they would be at `base_width`, to its own width.

    Raises:
        ConfigError: the architecture has parts that no rule is known for.
    """
    multiplier = _width_multiplier(model, base_width)
    hidden, gain = _hidden_matrices(model), _last_norm(model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in hidden:
                weight /= math.sqrt(multiplier)
            elif name in gain:
                weight /= multiplier


def lr_multipliers(model: PreTrainedModel, base_width: int) -> dict[str, float]:
    """What the learning rate of each parameter is multiplied with, by the name of the parameter.

    Raises:
        ConfigError: the architecture has parts that no rule is known for.
    """
    multiplier = _width_multiplier(model, base_width)
    slower = _hidden_matrices(model) | _last_norm(model)
    return {name: 1 / multiplier if name in slower else 1.0 for name, _ in model.named_parameters()}


def _width_multiplier(model: PreTrainedModel, base_width: int) -> float:
    if model.config.model_type not in SERVED:
        raise ConfigError([f"mup_base_width: no rules for {model.config.model_type}; there are for {', '.join(SERVED)}"])
    return model.config.hidden_size / base_width


def _hidden_matrices(model: PreTrainedModel) -> set[str]:
    """The matrices both of whose sides grow with the width."""
    apart = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    apart.add(id(model.get_output_embeddings().weight))
    return {name for name, weight in matrices(model).items() if id(weight) not in apart}


def _last_norm(model: PreTrainedModel) -> set[str]:
    """Gain and bias of the norm before the output layer."""
    norms = [name for name, module in model.base_model.named_children() if "Norm" in type(module).__name__]
    assert len(norms) == 1, f"{model.config.model_type} has the norms {norms} after its layers"
    prefix = f"{model.base_model_prefix}.{norms[0]}."
    return {name for name, _ in model.named_parameters() if name.startswith(prefix)}
