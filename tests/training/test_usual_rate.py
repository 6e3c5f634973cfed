from __future__ import annotations

from typing import Any

import pytest
from transformers import BertConfig, LlamaConfig, MarianConfig

from llmkit.config import Source, resolve
from llmkit.errors import ConfigError
from llmkit.training.finetune import FinetuneConfig
from llmkit.training.finetuning import usual_learning_rate
from llmkit.training.pretrain import PretrainConfig


def settings(**given: Any) -> FinetuneConfig:
    return resolve(FinetuneConfig, [Source({"train_file": "t.csv", **given}, {})]).config


@pytest.mark.parametrize(
    ("given", "config", "rate"),
    [
        ({"model_name_or_path": "m"}, BertConfig(hidden_size=768), 5e-5),
        ({"model_name_or_path": "m"}, LlamaConfig(hidden_size=256), 1.5e-4),
        ({"model_name_or_path": "m", "peft": "lora"}, LlamaConfig(hidden_size=768), 5e-4),
        ({"model_name_or_path": "m", "random_start": True}, LlamaConfig(hidden_size=256), 7.5e-4),
        ({"model_type": "marian", "task": "translation"}, MarianConfig(d_model=128), 1.5e-3),
    ],
)
def test_the_usual_rate_falls_with_the_width_and_rises_where_there_is_more_to_learn(
    given: dict[str, Any], config: Any, rate: float
) -> None:
    assert usual_learning_rate(settings(**given), config) == pytest.approx(rate)


def test_pretraining_has_no_usual_rate() -> None:
    with pytest.raises(ConfigError, match="learning_rate: is none"):
        resolve(PretrainConfig, [Source({"learning_rate": None, "tokens": "t"}, {})])
