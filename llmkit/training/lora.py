"""Low-rank adaptation (Hu et al. 2022, "LoRA") by peft, so that all that is saved is a plain model of transformers.

The model that is trained is the transformers model itself, with updates inside its linear layers. What is saved as the model
has them added to the weights. Adding rounds, so a resume takes the base model and the updates, which lie beside the merged
weights in `adapter/`.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from llmkit.errors import ArtefactError, ConfigError
from llmkit.models.causal import parameter_counts
from llmkit.pipeline.ranks import dimension
from llmkit.training.freezing import told

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llmkit.training.finetune import FinetuneConfig

ADAPTER = "adapter"
"""The directory of the updates, in a checkpoint and in a result; `peft.PeftModel.from_pretrained` loads it."""

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


def check_lora(config: FinetuneConfig) -> None:
    """Refuse to begin where peft is missing, or under a layout that LoRA does not work with.

    Raises:
        ConfigError: says which, and what to do.
    """
    if importlib.util.find_spec("peft") is None:
        raise ConfigError(["peft: LoRA needs the package peft; install it with `pip install 'llmkit[peft]'`"])
    divided = any(os.environ.get(f"ACCELERATE_USE_{engine}", "false") == "true" for engine in ("FSDP", "DEEPSPEED"))
    asked = config.training_arguments.get("fsdp") or config.training_arguments.get("deepspeed")
    if divided or asked or dimension("tensor") > 1:
        raise ConfigError(
            [
                "peft: the updates are added to whole weights when a checkpoint is written, and this layout divides weights "
                "or has checkpoints of its own; take ddp, where LoRA's optimizer needs little memory, or one process"
            ]
        )


class Adapter:
    """The low-rank updates of a model, and its head, which is trained whole."""

    def __init__(self, model: PreTrainedModel, new_weights: list[str], config: FinetuneConfig):
        """Put updates into the linear layers of a model, in place; all other weights are frozen but those of its head.

        Args:
            new_weights: names of the weights that no base model has given; modules that own one are trained whole, too.

        Raises:
            ConfigError: `lora_target_modules` names a layer that there is not.
        """
        from peft import LoraConfig, PeftModel

        whole = _whole_modules(model, new_weights)
        targets = _targets(model, whole, config.lora_target_modules)
        settings = LoraConfig(
            r=config.lora_r,
            lora_alpha=cast(Any, config.lora_alpha),  # peft multiplies with it, and declares a whole number
            lora_dropout=config.lora_dropout,
            target_modules=targets,
            modules_to_save=whole or None,
            fan_in_fan_out=isinstance(model.get_submodule(targets[0]), Conv1D),
        )
        self.name = config.model_name_or_path or ""
        self.layers = len(targets)
        self.parameters = parameter_counts(model)
        """Those of the plain model; see `models.causal.parameter_counts`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = model
            self.peft = PeftModel(model, settings)

    def __str__(self) -> str:
        rank = self.peft.peft_config["default"].r
        return f"LoRA of rank {rank} in {self.layers} linear layers; {told(self.model)}"

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The weights of the plain model, with the updates added; those that have none are not copied."""
        from peft.tuners.lora import LoraLayer

        modules = dict(self.model.named_modules())
        weights = {}
        with torch.no_grad():
            for name, weight in self.model.state_dict().items():
                if ".lora_" in name or ".original_module." in name:
                    continue
                owner = modules.get(name.removesuffix(".base_layer.weight"))
                if isinstance(owner, LoraLayer):
                    update: Any = owner
                    weight = weight + update.get_delta_weight("default").to(weight.dtype)
                weights[name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")] = weight
        return weights

    def updates(self) -> dict[str, torch.Tensor]:
        """What is trained, by the names of peft."""
        from peft import get_peft_model_state_dict

        found = get_peft_model_state_dict(self.peft, save_embedding_layers=False)
        return {name: weight.detach().cpu().contiguous() for name, weight in found.items()}

    def save(self, directory: Path) -> None:
        """Write the updates as peft reads them."""
        place = directory / ADAPTER
        place.mkdir(exist_ok=True)
        save_file(self.updates(), place / _WEIGHTS, metadata={"format": "pt"})
        settings = self.peft.peft_config["default"].to_dict()
        settings |= {name: sorted(value) for name, value in settings.items() if isinstance(value, set)}
        # Where a base model lay on this machine is nothing that others could use.
        settings |= {"base_model_name_or_path": None if Path(self.name).exists() else self.name, "inference_mode": True}
        (place / _CONFIG).write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    def load(self, directory: Path) -> None:
        """Take the updates of a checkpoint, in place."""
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self.peft, load_file(directory / ADAPTER / _WEIGHTS))

    def check(self, directory: Path) -> None:
        """Compare what was written with what is in memory.

        Raises:
            ArtefactError: they differ.
        """
        file = directory / ADAPTER / _WEIGHTS
        written, live = load_file(file), self.updates()
        if written.keys() != live.keys() or not all(torch.equal(written[name], live[name]) for name in live):
            raise ArtefactError(f"{file} is not on disk as it is in memory; is the disk sound?")


def _whole_modules(model: PreTrainedModel, new_weights: list[str]) -> list[str]:
    """The modules that are trained whole: the head, unless that gives the logits of tokens, and those with new weights."""
    body, logits = model.base_model, model.get_output_embeddings()
    heads = [
        name
        for name, module in model.named_children()
        if body is not model and module not in (body, logits) and any(True for _ in module.parameters())
    ]
    owners = sorted({name.rpartition(".")[0] for name in new_weights})
    return [*heads, *(name for name in owners if not any(f"{name}.".startswith(f"{head}.") for head in heads))]


def _targets(model: PreTrainedModel, whole: list[str], asked: list[str] | None) -> list[str]:
    """The full names of the linear layers that get updates."""
    logits = model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and module is not logits
        and not any(f"{name}.".startswith(f"{part}.") for part in whole)
    ]
    if asked is None:
        chosen, unknown = linear, []
    else:
        chosen = [name for name in linear if any(f".{name}".endswith(f".{word}") for word in asked)]
        unknown = [word for word in asked if not any(f".{name}".endswith(f".{word}") for name in linear)]
    if unknown or not chosen:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in linear})) or "none"
        wrong = ", ".join(map(repr, unknown)) or "a linear layer"
        raise ConfigError([f"lora_target_modules: the model has no linear layer {wrong}; its linear layers are {known}"])
    return chosen


def adapted(model: Any, new_weights: list[str], config: FinetuneConfig) -> Adapter | None:
    """The updates of a model, where the settings ask for them."""
    return Adapter(model, new_weights, config) if config.peft == "lora" else None
