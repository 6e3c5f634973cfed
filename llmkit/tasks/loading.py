"""A task model from its directory: what evaluation and prediction begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmkit.errors import ConfigError
from llmkit.pipeline.stage import is_path
from llmkit.tasks.base import Task
from llmkit.tasks.registry import SECTION, task_class, task_of


def load_task_model(name: str, asked: str | None = None) -> tuple[Task[Any], Any, Any]:
    """A model that has learned a task, on the accelerator if there is one.

    Args:
        name: directory or hub name.
        asked: the task, where the model's config does not say it or says another one.

    Returns:
        The task, the model in evaluation mode and float32 (a quantised one in int8 and on the CPU), and its tokenizer.

    Raises:
        ConfigError: there is no such model, it does not say what its task is, or it has not learned it.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    if is_path(name) and not Path(name).is_dir():
        raise ConfigError([f"model_name_or_path: there is no directory {name!r} (looked in {Path.cwd()})"])
    try:
        config = transformers.AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as failure:
        raise ConfigError([f"model_name_or_path: {name!r} is no model that transformers can load: {failure}"]) from failure
    task_name = asked or task_of(config)
    if task_name is None:
        raise ConfigError([f"task: the config of {name!r} does not say what the model was made for; name it with --task"])
    kind = task_class(task_name)
    noted = getattr(config, SECTION, None) or {}
    task = kind.of_model(noted if noted.get("task") == task_name else {}, config)
    words = task_name.replace("-", " ")
    if noted.get("quantization"):
        from llmkit.models import int8

        try:
            model = int8.load(name, kind.auto_class)
        except (OSError, ValueError) as failure:
            raise ConfigError([f"model_name_or_path: {name!r} gives no quantised model: {failure}"]) from failure
        return task, model.eval(), task.load_tokenizer(name)
    try:
        auto_class = getattr(transformers, task.auto_class_of(config))
        model, loading = auto_class.from_pretrained(name, dtype="float32", output_loading_info=True)
    except (OSError, ValueError, ImportError, SafetensorError) as failure:
        raise ConfigError([f"model_name_or_path: {name!r} gives no model for {words}: {failure}"]) from failure
    if loading["missing_keys"]:  # transformers has filled them with random numbers
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise ConfigError([f"model_name_or_path: {name!r} has not learned {words} (it lacks {missing}); fine-tune it first"])
    tokenizer = task.load_tokenizer(name)
    if model.config.pad_token_id is None:  # by it a causal classifier finds where a text in a batch ends
        model.config.pad_token_id = tokenizer.pad_token_id
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return task, model.to(device).eval(), tokenizer
