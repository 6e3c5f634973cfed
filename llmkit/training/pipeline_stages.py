"""A causal model of transformers cut into stages of consecutive layers.

Each stage is the architecture's own forward pass over fewer layers: the first looks the embeddings up, the others take hidden
states in their place (`inputs_embeds`), and only the last has the norm and the output layer. So masks, positions and the loss
are those of transformers, and nothing here knows the name of an architecture. Whether an architecture can be cut like this is
seen by computing: the stages one after the other must give the logits of the whole model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from llmkit.errors import ConfigError
from llmkit.models.causal import causal_skeleton

_LARGEST_DIFFERENCE = 1e-4
"""Of logits from those of the whole model, relative to the largest: the same sums in the same order differ by nothing."""

_ANOTHER = "take another layout, such as fsdp2"


class NoEmbedding(nn.Module):
    """Stands for a table of positions where the hidden states have it in them already."""

    def forward(self, *_: Any, **__: Any) -> torch.Tensor:
        """Nothing to add."""
        return torch.zeros(())


class Stage(nn.Module):
    """Some consecutive layers of a causal model, with what comes before the first and after the last of all."""

    def __init__(self, model: Any, is_first: bool, is_last: bool):
        """Set up.

        Args:
            model: of the architecture, with the modules of this stage only.
        """
        super().__init__()
        self.model, self.is_first, self.is_last = model, is_first, is_last
        self.autocast: Callable[[], AbstractContextManager[Any]] = torch.enable_grad
        self.targets: torch.Tensor | int = 1
        """What the loss is divided by: learned tokens of the step, on all ranks."""

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states of shape [batch, length, width]; of the last stage the loss, or without labels the logits.

        Args:
            inputs: token ids of shape [batch, length], or after the first stage hidden states.
            labels: for the last stage, of shape [batch, length]; the model shifts them.
        """
        given = {"input_ids": inputs} if self.is_first else {"inputs_embeds": inputs}
        with self.autocast():
            if not self.is_last:
                return self.model.base_model(**given, use_cache=False).last_hidden_state
            if labels is None:
                return self.model(**given, use_cache=False).logits
            return self.model(**given, labels=labels, num_items_in_batch=self.targets, use_cache=False).loss


def layers_of_stages(layers: int, stages: int) -> list[range]:
    """The layers of each stage, as evenly as can be; the first stages get those that are left over."""
    each, over = divmod(layers, stages)
    starts = [stage * each + min(stage, over) for stage in range(stages + 1)]
    return [range(start, stop) for start, stop in pairwise(starts)]


def cut(model: Any, stages: int, check: bool = True) -> list[Stage]:
    """All stages of a model; they share its modules, so nothing is copied.

    Args:
        model: whole, on the CPU.
        check: compare what the stages compute with what the model does.

    Raises:
        ConfigError: it is no plain stack of decoder layers, or has fewer of them than stages.
    """
    problems = list(_problems(model, stages))
    if problems:
        raise ConfigError(problems)
    made = [
        _stage(model, layers, number == 0, number == stages - 1)
        for number, layers in enumerate(layers_of_stages(model.config.num_hidden_layers, stages))
    ]
    if check and not (difference := _difference(model, made)) <= _LARGEST_DIFFERENCE:
        raise ConfigError(
            [
                f"model_type: {model.config.model_type} does more between its layers than hand hidden states on (in stages "
                f"its logits differ by {difference:.1e}), and a pipeline would train another model; {_ANOTHER}"
            ]
        )
    return made


def keep_only(model: Any, stages: list[Stage]) -> None:
    """Take out of a model, in place, what none of these stages has: the names of the others stay as they are."""
    kept = {id(module) for stage in stages for module in stage.modules()}
    body = model.base_model
    layers = body.get_submodule(_layers_name(model))
    for owner in (layers, body, model):
        for name, module in list(owner.named_children()):
            if id(module) not in kept and module is not body and module is not layers:
                setattr(owner, name, nn.Identity())


def _problems(model: Any, stages: int) -> Any:
    config, kind = model.config, model.config.model_type
    if getattr(config, "is_encoder_decoder", False) or _layers_name(model) is None:
        yield f"model_type: {kind} is no plain stack of decoder layers, and a pipeline cuts only those; {_ANOTHER}"
        return
    if any(getattr(config, name, None) for name in ("num_local_experts", "num_experts", "n_routed_experts")):
        yield f"model_type: {kind} has experts, whose loss is that of all layers, and no stage has them all; {_ANOTHER}"
    if len(set(getattr(config, "layer_types", None) or ["one"])) > 1:
        yield f"model_type: the layers of this {kind} are of several kinds, and a pipeline cuts only equal ones; {_ANOTHER}"
    if config.num_hidden_layers < stages:
        yield (
            f"accelerate_config: {config.num_hidden_layers} layers cannot be divided among {stages} stages; take fewer "
            f"processes, a smaller pipeline_virtual_stages, or a deeper model"
        )


def _layers_name(model: Any) -> str | None:
    """The list of decoder layers among the children of the base model; None where there is not one such list."""
    count = getattr(model.config, "num_hidden_layers", None)
    found = [
        name for name, child in model.base_model.named_children() if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    has_others = sum(isinstance(child, nn.ModuleList) for child in model.base_model.children()) != 1
    return None if model.base_model is model or len(found) != 1 or has_others else found[0]


def _stage(model: Any, layers: range, is_first: bool, is_last: bool) -> Stage:
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[layers.start : layers.stop]
    config._attn_implementation = model.config._attn_implementation
    part = causal_skeleton(config)
    where = _layers_name(model)
    assert where is not None
    table, is_behind = model.get_input_embeddings(), False
    for name, child in model.base_model.named_children():
        used: nn.Module = child
        if name == where:
            used, is_behind = nn.ModuleList(child[number] for number in layers), True
        elif isinstance(child, nn.Embedding):
            used = child if is_first else nn.Identity() if child is table else NoEmbedding()
        elif isinstance(child, nn.Dropout):
            used = child if is_first else nn.Identity()
        elif any(True for _ in child.parameters()):
            used = child if (is_last if is_behind else is_first) else nn.Identity()
        setattr(part.base_model, name, used)
    for name, child in model.named_children():
        if child is not model.base_model:
            setattr(part, name, child if is_last else nn.Identity())
    return Stage(part, is_first, is_last)


@torch.no_grad()
def _difference(model: Any, stages: list[Stage]) -> float:
    """How far the logits of the stages are from those of the model, relative to the largest of these."""
    was_training = model.training
    ids = torch.arange(16).reshape(2, 8) % model.config.vocab_size
    for module in (model, *stages):
        module.eval()
    try:
        expected = model(input_ids=ids, use_cache=False).logits
        hidden: torch.Tensor = ids
        for stage in stages:
            hidden = stage(hidden)
        return ((hidden - expected).abs().max() / expected.abs().max()).item()
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return float("inf")  # it needs something that only the first stage, or the whole model, has
    finally:
        for module in (model, *stages):
            module.train(was_training)
