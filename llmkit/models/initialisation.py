"""Random weights of a new model: the shape of their distribution, and how it depends on depth.

The architecture's own initialisation of transformers comes first, and stays where nothing else is asked for. What is asked for
redraws matrices alone: biases stay zero, norms stay as the architecture begins them (a scale of one).
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import torch

from llmkit.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CUT = 3.0
"""Standard deviations at which the truncated normal ends, as in OLMo (Groeneveld et al. 2024)."""

# What writes into the residual stream, by the names that architectures of transformers have for it: Llama and its kin,
# experts, GPT-2, OPT and BART, GPT-NeoX, Falcon.
_RESIDUAL = re.compile(r"\.(o_proj|out_proj|down_proj|c_proj|fc2|dense_4h_to_h|(self_)?attention\.dense)(\.weight)?$")


def initialise(model: PreTrainedModel, distribution: str, depth_scaled: bool, seed: int) -> None:
    """Draw the matrices of a new model again, in place; the same seed gives the same weights.

    Args:
        distribution: `normal`, `uniform` or `truncated_normal`, of mean zero and with the config's `initializer_range` as
            standard deviation (cutting at three of them takes 1.3% of it); or `default`, the architecture's own.
        depth_scaled: whether matrices that write into the residual stream are smaller by the square root of the number of
            these, two a layer, so that the stream does not grow with depth (Radford et al. 2019, section 2.3).

    Raises:
        ConfigError: the architecture has matrices with a distribution of their own, or residual projections by other names.
    """
    if distribution == "default" and not depth_scaled:
        return
    std = getattr(model.config, "initializer_range", None)
    if not std:
        raise ConfigError([f"initialisation: {model.config.model_type} has no initializer_range; only `default` serves it"])
    residual = _residual_projections(model) if depth_scaled else set()
    names = residual if distribution == "default" else _plain_matrices(model)
    smaller = 1 / math.sqrt(2 * model.config.num_hidden_layers)
    generator = torch.Generator().manual_seed(seed)
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, weight in model.named_parameters():  # a tied one comes once
            if name in names:
                _draw(weight, distribution, std * (smaller if name in residual else 1.0), generator)
                padding = getattr(modules[name.rpartition(".")[0]], "padding_idx", None)
                if padding is not None:
                    weight[padding].zero_()


def _draw(weight: torch.Tensor, distribution: str, std: float, generator: torch.Generator) -> None:
    if distribution == "uniform":  # on [-a, a] the variance is a² / 3
        torch.nn.init.uniform_(weight, -math.sqrt(3) * std, math.sqrt(3) * std, generator=generator)
    elif distribution == "truncated_normal":
        torch.nn.init.trunc_normal_(weight, 0.0, std, -CUT * std, CUT * std, generator=generator)
    else:
        torch.nn.init.normal_(weight, 0.0, std, generator=generator)


def matrices(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """The parameters of two and more dimensions by name; those of experts have three."""
    # Under ZeRO-3 a parameter is an empty vector in this process, and has its shape beside it.
    return {name: weight for name, weight in model.named_parameters() if len(getattr(weight, "ds_shape", weight.shape)) >= 2}


def _plain_matrices(model: PreTrainedModel) -> set[str]:
    """The names of all matrices.

    Raises:
        ConfigError: some are no weights of linear layers, embeddings, experts or routers, such as Mamba's `A_log`.
    """
    modules = dict(model.named_modules())
    own = []
    for name in matrices(model):
        kind = type(modules[name.rpartition(".")[0]]).__name__
        if not re.search(r"Linear|Embedding|^Conv1D$|Experts|Router|Gate", kind):  # transformers' Conv1D is a linear layer
            own.append(name.rpartition(".")[2] if kind != "Conv1d" else "conv1d")
    if own:
        listed = ", ".join(sorted(set(own)))
        raise ConfigError(
            [f"initialisation: {model.config.model_type} draws {listed} in a way of its own; only `default` serves it"]
        )
    return set(matrices(model))


def _residual_projections(model: PreTrainedModel) -> set[str]:
    names = {name for name in matrices(model) if _RESIDUAL.search(f".{name}")}
    if len(names) < 2 * model.config.num_hidden_layers:
        raise ConfigError(
            [
                f"depth_scaled: {len(names)} residual projections found in {model.config.model_type}, which has "
                f"{model.config.num_hidden_layers} layers and should have two in each; leave it out"
            ]
        )
    return names
