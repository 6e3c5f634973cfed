"""Two texts as one input."""

from __future__ import annotations

from typing import Any

from llmkit.errors import ConfigError


def give_pair_form(tokenizer: Any) -> None:
    """Let a tokenizer that has no form for two texts put a separator (SEP or EOS) between them.

    An encoder's tokenizer has a form of its own, and it is kept. That of a causal model mostly has none, and would join the
    last word of the first text to the first of the second. The form becomes part of the tokenizer, is saved with it, and
    serves `pipeline("text-classification")` as well.

    Raises:
        ConfigError: it has no token that could stand between them, or no rules that can be changed.
    """
    from tokenizers.processors import TemplateProcessing

    if tokenizer.num_special_tokens_to_add(pair=True) > tokenizer.num_special_tokens_to_add(pair=False):
        return
    separator = tokenizer.sep_token or tokenizer.eos_token
    if separator is None or not tokenizer.is_fast:
        raise ConfigError(["text_pair_column: the tokenizer has no form for two texts, and none can be given to it"])
    encoded = tokenizer("a", return_special_tokens_mask=True)
    tokens, mask = tokenizer.convert_ids_to_tokens(encoded["input_ids"]), encoded["special_tokens_mask"]
    first = mask.index(0) if 0 in mask else len(mask)
    last = len(mask) - mask[::-1].index(0) if 0 in mask else len(mask)
    before, after = tokens[:first], tokens[last:]
    special = {token: tokenizer.convert_tokens_to_ids(token) for token in (*before, separator, *after)}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", separator, "$B:0", *after],
        special_tokens=list(special.items()),
    )
