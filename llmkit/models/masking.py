"""Whether a model keeps the documents of a packed row apart, found out by asking it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from llmkit.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LENGTH = 12
_CUTS = (5, 8)  # where the second document begins, in either row
# Relative to the spread of the logits. Rounding in float32 moves them by 1e-6; a document that sees another, by more than 1.
_TOLERANCE = 1e-2


def check_document_masking(model: PreTrainedModel, setting: str = "document_masking") -> None:
    """Refuse a model that does not learn the documents of a row apart when it is given positions that start again.

    transformers derives a mask from such positions where the attention takes one; other architectures (state spaces, ALiBi,
    positions counted by the model itself) ignore or refuse them, without a word. So a batch of two rows of two documents each
    is compared with the documents alone. The weights are overwritten with noise first: of weights that start at zero, none
    would show what sees what. Give a copy.

    Args:
        setting: the setting that asks for it.

    Raises:
        ConfigError: the model does not keep them apart.
    """
    kind, attention = model.config.model_type, model.config._attn_implementation
    instead = f"set {setting}: false, or take another model_type or attn_implementation"
    if "flash" in attention:
        raise ConfigError(
            [
                f"{setting}: {attention} looks at the positions of a batch of one row only, and would learn across "
                f"documents in others; take attn_implementation sdpa or flex_attention"
            ]
        )
    generator = torch.Generator().manual_seed(0)
    try:
        # Without compiling: flex_attention would be compiled for the processor, to be used on a GPU.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            for weights in model.parameters():
                if weights.ndim > 1:
                    weights.normal_(std=weights.shape[-1] ** -0.5, generator=generator)
            difference = _difference(model.eval())
    except Exception as failure:
        reason = str(failure).partition("\n")[0]
        raise ConfigError([f"{setting}: {kind} with {attention} fails on it ({reason}); {instead}"]) from failure
    if not difference < _TOLERANCE:
        raise ConfigError([f"{setting}: {kind} with {attention} does not keep documents apart; {instead}"])


def _difference(model: PreTrainedModel) -> float:
    """How far the logits of packed documents are from those of the documents alone, in standard deviations."""
    ids = torch.arange(len(_CUTS) * _LENGTH).view(len(_CUTS), _LENGTH) * 7 % model.config.vocab_size
    positions = torch.stack([torch.cat([torch.arange(cut), torch.arange(_LENGTH - cut)]) for cut in _CUTS])
    packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    documents = (part[None] for row, cut in zip(ids, _CUTS, strict=True) for part in (row[:cut], row[cut:]))
    alone = torch.cat([model(input_ids=document, use_cache=False).logits[0] for document in documents])
    return float((packed.flatten(0, 1) - alone).abs().max() / alone.std())
