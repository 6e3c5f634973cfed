"""Byte-level BPE, Unigram and WordPiece through `tokenizers`, as a tokenizer that transformers loads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llmkit.errors import DataError

if TYPE_CHECKING:
    from llmkit.tokens.train_tokenizer import TokenizerConfig

# How byte-level BPE cuts text before it merges: a word takes the space before it, digits stand alone (so that numbers are
# written the same way everywhere), Han characters never merge with Latin letters, line ends keep together.
PIECES = (
    r"'(?:[sdmtSDMT]|ll|ve|re|LL|VE|RE)"
    r"|[^\r\n\p{L}\p{N}]?(?:\p{Han}+|(?:(?!\p{Han})[\p{L}\p{M}])+)"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)


def build_and_train(config: TokenizerConfig, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a tokenizer on texts.

    Raises:
        DataError: there is nothing to learn from.
    """
    special = [config.eos_token, config.pad_token, *config.special_tokens]
    unknown = "[UNK]" if config.model == "wordpiece" else "<unk>" if config.model == "unigram" else None
    if unknown:
        special.insert(0, unknown)
    tokenizer, trainer = _build(config, special, unknown)
    counted = _Counted(texts)
    too_small = (
        f"vocab_size: {config.vocab_size} has no room for every character of the corpus, which {config.model} needs; "
        f"raise it, or use `bpe`, which writes rare characters as bytes"
    )
    try:
        tokenizer.train_from_iterator(counted, trainer=trainer)
    except Exception as failure:  # what tokenizers raises has no class of its own
        if "vocabulary is not large enough" not in str(failure):
            raise
        raise DataError(too_small) from failure
    if counted.characters == 0:
        raise DataError(f"corpus {config.corpus} has no text in its train split; a tokenizer has nothing to learn from")
    if tokenizer.get_vocab_size() > config.vocab_size:  # WordPiece takes all characters, however many there are
        raise DataError(too_small)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=AddedToken(config.eos_token, special=True),
        bos_token=AddedToken(config.eos_token, special=True),
        pad_token=AddedToken(config.pad_token, special=True),
        unk_token=unknown or config.eos_token,
        additional_special_tokens=config.special_tokens,
        model_max_length=config.model_max_length,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def _build(config: TokenizerConfig, special: list[str], unknown: str | None) -> tuple[Tokenizer, trainers.Trainer]:
    trainer: trainers.Trainer
    shared: dict[str, Any] = {"vocab_size": config.vocab_size, "special_tokens": special, "show_progress": False}
    if config.model == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(min_frequency=config.min_frequency, initial_alphabet=alphabet, **shared)
    elif config.model == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token=unknown, **shared)
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(min_frequency=config.min_frequency, **shared)
    # The same normal form as the corpus, so that text typed by a user meets the forms the model was trained on.
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer, trainer


class _Counted:
    """An iterable that knows how many characters went through it."""

    def __init__(self, texts: Iterable[str]):
        self.texts = texts
        self.characters = 0

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            self.characters += len(text)
            yield text
