"""Two ways from documents to token ids: by the tokenizer itself, and a faster one for byte-level BPE with the same ids.

The faster one reads text as Arrow has it, in bytes, cuts it to pieces as the tokenizer's regular expression does, and takes
the tokens of most pieces from a memory of those met before.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import pyarrow

    from llmkit.tokens.byte_bpe_tables import Plan

_REMEMBERED = 48  # bytes; hardly any longer piece comes back


class Encoder(Protocol):
    """Documents to tokens."""

    def encode(self, texts: pyarrow.Array) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of all documents, an EOS after each, int32; and how many each has, int64 of shape [documents]."""


class StandardEncoder:
    """What `tokenizers` does, special tokens taken for the text that they are written with."""

    def __init__(self, tokenizer: Any, batch_documents: int = 256):
        self._backend, self._eos, self._batch = tokenizer.backend_tokenizer, tokenizer.eos_token_id, batch_documents
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()  # a tokenizer is saved with how it was last called
        self._backend.no_padding()

    def encode(self, texts: pyarrow.Array) -> tuple[np.ndarray, np.ndarray]:
        pieces = []
        for start in range(0, len(texts), self._batch):
            chunk = texts.slice(start, self._batch).to_pylist()
            for encoding in self._backend.encode_batch_fast(chunk, add_special_tokens=False):
                pieces.append(np.array([*encoding.ids, self._eos], dtype=np.int32))
        return _joined(pieces), np.array([len(piece) for piece in pieces], dtype=np.int64)


class FastEncoder:
    """Byte-level BPE by `llmkit.tokens.byte_bpe`, with the ids of `StandardEncoder`."""

    def __init__(self, tokenizer: Any, plan: Plan):
        from llmkit.tokens import byte_bpe
        from llmkit.tokens.byte_bpe_tables import empty_memory, merges_of

        self._kernels, self._plan, self._eos = byte_bpe, plan, tokenizer.eos_token_id
        self._normaliser = tokenizer.backend_tokenizer.normalizer
        self._standard = StandardEncoder(tokenizer)
        self._merges, self._memory = merges_of(plan, with_nfc=self._normaliser is not None), empty_memory()
        self._remembered = max([_REMEMBERED, *map(len, plan.whole)])
        kinds = (np.int32, np.uint32, np.int64, np.int64)
        self._work = tuple(np.empty(byte_bpe.LONGEST, dtype=kind) for kind in kinds)
        self._forget()

    @classmethod
    def of(cls, tokenizer: Any) -> FastEncoder | None:
        """The fast encoder of a tokenizer of transformers; None where it is not known to give the same ids.

        Raises:
            ImportError: numba is not installed.
        """
        from llmkit.tokens.byte_bpe_tables import plan_of

        plan = plan_of(json.loads(tokenizer.backend_tokenizer.to_str()))
        return cls(tokenizer, plan) if plan else None

    def encode(self, texts: pyarrow.Array) -> tuple[np.ndarray, np.ndarray]:
        if not len(texts):
            return self._standard.encode(texts)
        ids, lengths = self._compiled(texts, normalised=self._normaliser is None)
        left = np.flatnonzero(lengths == 0)
        if not len(left):
            return ids, lengths
        pieces = np.split(ids, np.cumsum(lengths)[:-1])
        for number in left:
            pieces[number] = self._one(texts.slice(number, 1))
        return _joined(pieces), np.array([len(piece) for piece in pieces], dtype=np.int64)

    def _one(self, text: pyarrow.Array) -> np.ndarray:
        """The tokens of a document that needs its normal form, or has a very long piece."""
        import pyarrow

        if self._normaliser is not None:
            normal = pyarrow.array([self._normaliser.normalize_str(text[0].as_py())], pyarrow.large_string())
            ids, _ = self._compiled(normal, normalised=True)
            if len(ids):
                return ids
        return self._standard.encode(text)[0]

    def _compiled(self, texts: pyarrow.Array, normalised: bool) -> tuple[np.ndarray, np.ndarray]:
        import pyarrow

        texts = texts.cast(pyarrow.large_string())
        texts.validate(full=True)  # what is compiled relies on it that text is UTF-8
        _, offsets, data = texts.buffers()
        starts = np.frombuffer(offsets, dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
        text = np.frombuffer(data or b"", dtype=np.uint8)
        lengths = np.zeros(len(texts), dtype=np.int64)
        ids = np.empty(int(starts[-1] - starts[0]) + len(texts), dtype=np.int32)
        tables = (self._plan.cut, self._merges, self._memory, self._remembered)
        written = self._kernels.encode(text, starts, normalised, self._eos, *tables, ids, lengths, self._work)
        if self._memory.used[1]:
            self._forget()
        return ids[:written], lengths

    def _forget(self) -> None:
        """Begin to remember anew; what a corpus is about changes as it is read."""
        self._memory.slots[:] = 0
        self._memory.used[:] = 0
        whole = self._plan.whole
        if whole:
            offsets = np.cumsum([0, *map(len, whole)])
            text = np.frombuffer(b"".join(whole), dtype=np.uint8)
            self._kernels.remember_all(text, offsets, np.array(list(whole.values()), dtype=np.int32), self._memory)


def _joined(pieces: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int32)
