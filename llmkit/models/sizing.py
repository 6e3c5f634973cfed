"""A whole pretraining run from one number: the size of the model, or its depth.

Each rule is numbered; `--dry_run` prints them with the figures of the run. The vocabulary counts as parameters. What is set
explicitly wins over every rule, and the rules that follow go on from it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from llmkit.errors import ConfigError

TOKENS_PER_PARAMETER = 20
"""Training tokens for each parameter that learn the most from a given computation (Hoffmann et al. 2022, Chinchilla)."""

LARGEST = 400_000_000_000
"""Parameters up to which the rules below have anything to stand on."""

# Widths: up to which, in what steps, and how wide a head. 64 is the head of GPT-2 and GPT-3's small models (Brown et al. 2020,
# table 2.1), 128 that of Llama (Touvron et al. 2023); narrower models need narrower heads to have several.
_WIDTHS = ((256, 16, 16), (512, 32, 32), (2048, 64, 64), (16385, 512, 128))
_LARGE = 2048
"""Width from which a model has about a billion parameters."""
_BAND = 2.0  # how far from the usual the proportions may be: little is lost by it (Kaplan et al. 2020, figure 5)
_STEP = 1.04  # a model of each size; see `_ladder`


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama-style model; names are those of transformers."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int

    @property
    def head_width(self) -> int:
        return next(head for limit, _, head in _WIDTHS if self.hidden_size < limit)

    @property
    def num_attention_heads(self) -> int:
        return self.hidden_size // self.head_width

    @property
    def num_key_value_heads(self) -> int:
        if self.hidden_size < _LARGE:
            return self.num_attention_heads
        return max(groups for groups in range(1, 9) if self.num_attention_heads % groups == 0)

    @property
    def intermediate_size(self) -> int:
        multiple = 64 if self.hidden_size >= 256 else 16
        return round(self.hidden_size * 8 / 3 / multiple) * multiple

    @property
    def tie_word_embeddings(self) -> bool:
        return self.hidden_size < _LARGE

    @property
    def block_parameters(self) -> int:
        """Parameters of the layers and the last norm."""
        width, groups = self.hidden_size, self.num_key_value_heads * self.head_width
        layer = 2 * width * width + 2 * width * groups + 3 * width * self.intermediate_size + 2 * width
        return self.num_hidden_layers * layer + width

    @property
    def parameters(self) -> int:
        tables = 1 if self.tie_word_embeddings else 2
        return tables * self.vocab_size * self.hidden_size + self.block_parameters

    def overrides(self) -> dict[str, Any]:
        """As `config_overrides` of a Llama."""
        return {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "tie_word_embeddings": self.tie_word_embeddings,
        }


@dataclass(frozen=True)
class Sizing:
    """What follows from one number."""

    shape: Shape
    settings: dict[str, Any]
    """Settings of `pretrain`, without those that are given."""
    derivation: list[str]
    """One line a rule, with its source and the figures of this run."""


def parse_count(text: str) -> int:
    """`125M`, `1.5B`, `800k` or a plain number, as a number of parameters.

    Raises:
        ValueError: it is none of these.
    """
    match = re.fullmatch(r"([\d_]+(?:\.\d+)?)\s*([kKmMbBgG]?)", text.strip())
    if match is None or not match[1].strip("_"):
        raise ValueError(f"{text!r} is no size; write 125M, 1.5B or a plain number")
    scale = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}[match[2].lower()]
    return round(float(match[1]) * scale)


def aspect_ratio(width: int) -> float:
    """Width over depth that is usual for a width."""
    far = math.log(width / 1536) / math.log(4096 / 1536)
    return 64 * 2 ** min(1.0, max(0.0, far))


def shape_of_size(num_params: int, vocab_size: int) -> Shape:
    """The model whose number of parameters is nearest; a larger number never gives a smaller model.

    Raises:
        ValueError: the vocabulary alone is larger than that, or no rule reaches so far.
    """
    ladder = _ladder(vocab_size)
    smallest = ladder[0].parameters
    if num_params < 0.8 * smallest:
        raise ValueError(
            f"{num_params:,} parameters are too few for a vocabulary of {vocab_size:,}; the smallest model with it has "
            f"{smallest:,}"
        )
    if num_params > LARGEST:
        raise ValueError(f"{num_params:,} parameters are beyond the rules of sizing, which end at {LARGEST:,}")
    return min(ladder, key=lambda shape: abs(math.log(shape.parameters / num_params)))


def shape_of_depth(depth: int, vocab_size: int) -> Shape:
    """The model of so many layers, with the width that is usual for them."""
    width = min(_widths(), key=lambda width: abs(math.log(width / aspect_ratio(width) / depth)))
    return Shape(vocab_size, width, depth)


def _widths() -> list[int]:
    widths: list[int] = []
    start = 32
    for limit, step, _ in _WIDTHS:
        widths += range(start, limit, step)
        start = limit
    return widths


@cache
def _ladder(vocab_size: int) -> list[Shape]:
    """Models of rising size: of those within four percent of each other the one of the most usual proportions."""
    rungs: dict[int, Shape] = {}

    def oddity(shape: Shape) -> float:
        return abs(math.log(shape.hidden_size / shape.num_hidden_layers / aspect_ratio(shape.hidden_size)))

    for width in _widths():
        usual = width / aspect_ratio(width)
        for depth in range(max(2, math.ceil(usual / _BAND)), max(4, math.floor(usual * _BAND)) + 1):
            shape = Shape(vocab_size, width, depth)
            rung = math.floor(math.log(shape.parameters) / math.log(_STEP))
            if rung not in rungs or oddity(shape) < oddity(rungs[rung]):
                rungs[rung] = shape
    return sorted(rungs.values(), key=lambda shape: shape.parameters)


def size(
    given: dict[str, Any], vocab_size: int, vocabulary_from: str, num_params: str | None = None, depth: int | None = None
) -> Sizing:
    """The settings of a run that follow from `num_params` or `depth`.

    Args:
        given: settings that are set explicitly.
        vocabulary_from: where `vocab_size` comes from, for the derivation.

    Raises:
        ConfigError: no model of this size can be made.
    """
    try:
        if num_params is not None:
            shape = shape_of_size(parse_count(num_params), vocab_size)
        else:
            assert depth is not None
            shape = shape_of_depth(depth, vocab_size)
    except ValueError as failure:
        raise ConfigError([f"num_params: {failure}"]) from None
    width, layers, total = shape.hidden_size, shape.num_hidden_layers, shape.parameters
    settings: dict[str, Any] = {"model_type": "llama", "config_overrides": shape.overrides()}

    usual_context = max(128, min(2048, 1 << round(math.log2(width * 4 / 3))))
    block_size = given.get("block_size") or usual_context
    budget = TOKENS_PER_PARAMETER * total
    compute = (6 * shape.block_parameters + 12 * layers * width * block_size) * budget
    best_batch = 0.2920 * compute**0.3271
    usual_samples = 1 << max(0, round(math.log2(best_batch / block_size)))
    samples = given.get("global_batch_size") or usual_samples
    steps = math.ceil(budget / (samples * block_size))
    learning_rate = float(f"{0.3118 * compute**-0.1250:.1e}")
    settings |= {
        "block_size": usual_context,
        "global_batch_size": usual_samples,
        "max_steps": steps,
        "learning_rate": learning_rate,
    }
    tied = "one table serves input and output" if shape.tie_word_embeddings else "input and output have a table each"
    asked = f"; {total / parse_count(num_params) - 1:+.1%} of the {num_params} asked for" if num_params else ""
    context = "the power of two nearest to 4/3 of the width, as GPT-2's 1,024 at 768, and GPT-3's 2,048 at most"
    batch = (
        f"the power of two nearest to 0.2920 x computation ^ 0.3271 = {best_batch:,.0f} tokens (Bi et al. 2024, equation 1)"
    )
    fitted = "" if 1e17 <= compute <= 2e19 else ", so extrapolated here"
    rules = [
        f"vocabulary {vocab_size:,} ({vocabulary_from}); {tied}: below about a billion parameters a shared one is the better "
        "use of them (Liu et al. 2024, MobileLLM)",
        f"width {width:,}, layers {layers}: width / layers about {aspect_ratio(width):.0f}, which is 64 up to width 1,536 and "
        "128 from 4,096 on (Brown et al. 2020, table 2.1); the loss depends little on it (Kaplan et al. 2020, figure 5)",
        f"heads {shape.num_attention_heads} of width {shape.head_width}: 64 below width 2,048, 128 from there on (Brown et "
        "al. 2020, table 2.1; Touvron et al. 2023), narrower in models narrower than 512",
        f"key-value heads {shape.num_key_value_heads}: as many as heads below width 2,048, at most 8 from there on (Ainslie "
        "et al. 2023; Grattafiori et al. 2024, Llama 3)",
        f"intermediate size {shape.intermediate_size:,}: 8/3 of the width, for three matrices in place of two (Shazeer 2020)",
        f"parameters {total:,}, the vocabulary counted{asked}",
        f"tokens {budget:,}: {TOKENS_PER_PARAMETER} for each parameter (Hoffmann et al. 2022, table 3)",
        f"sample length {block_size:,}: {'as set' if 'block_size' in given else context}",
        f"computation {compute:.2e}: operations of the layers, attention with them, for all tokens (Bi et al. 2024, DeepSeek "
        "LLM, equation 2)",
        f"batch {samples:,} samples, {samples * block_size:,} tokens: {'as set' if 'global_batch_size' in given else batch}",
        f"learning rate {learning_rate:.1e}: 0.3118 x computation ^ -0.1250 (Bi et al. 2024, equation 1; fitted between 1e17 "
        f"and 2e19 operations{fitted})",
        f"steps {steps:,}: tokens / batch",
    ]
    return Sizing(
        shape,
        {key: value for key, value in settings.items() if key not in given or key == "config_overrides"},
        [f"{number}. {rule}" for number, rule in enumerate(rules, 1)],
    )


def describe_parameters(counts: dict[str, int]) -> str:
    """The parameters by part, in one line."""
    parts = [
        f"{name} {counts[name]:,} ({counts[name] / max(1, counts['total']):.0%})"
        for name in ("embedding", "attention", "mlp", "norm", "head", "other")
        if counts[name]
    ]
    active = f", of which a token uses {counts['active']:,}" if counts["active"] != counts["total"] else ""
    return f"{counts['total']:,} parameters{active}: {', '.join(parts)}"


def describe_ratio(tokens: int, parameters: int) -> str:
    """The tokens of a run against the parameters that a token uses, and what that means."""
    ratio = tokens / parameters
    if ratio < TOKENS_PER_PARAMETER / 2:
        meaning = "a smaller model or more tokens would learn more from this computation"
    elif ratio <= TOKENS_PER_PARAMETER * 2:
        meaning = "about what learns most from this computation"
    else:
        meaning = "beyond what training alone would choose, and worth it where the model is used much"
    return (
        f"{tokens:,} tokens, {ratio:.3g} a parameter, where about {TOKENS_PER_PARAMETER} are compute-optimal "
        f"(Hoffmann et al. 2022): {meaning}"
    )
