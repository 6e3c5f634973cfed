"""Text from a causal language model. `generate.py` holds the settings of the stage and stays light to import.

One text is generated at a time, from a seed of its own: so it is the same whether it is streamed to a terminal or one of
thousands in a file, which in batches of padded prompts it would not be to the bit.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.generation import BaseStreamer
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from llmkit.errors import ConfigError, DataError
from llmkit.pipeline.stage import is_path
from llmkit.tasks.base import positions_of
from llmkit.tasks.tables import pick_column, read_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmkit.pipeline.stage import Workspace
    from llmkit.tasks.generate import GenerateConfig

GENERATIONS = "generations.jsonl"

_IN_MANIFEST = 10  # texts; all of them are in the file

# Characters that steer a terminal, as a person can read them.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen; see the settings of the same names."""

    max_new_tokens: int
    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int | None = None


@dataclass(frozen=True)
class Generation:
    """What a model wrote after a prompt."""

    prompt: str
    text: str
    """Without the prompt."""
    tokens: int
    ended: str
    """eos: the model ended it; length: max_new_tokens did; context: the model's context length did."""


def load(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model of a directory or of the hub, on the accelerator if there is one, and its tokenizer.

    Raises:
        ConfigError: there is none.
    """
    if is_path(name) and not Path(name).is_dir():
        raise ConfigError([f"model_name_or_path: there is no directory {name!r} (looked in {Path.cwd()})"])
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model, loading = AutoModelForCausalLM.from_pretrained(name, dtype="auto", output_loading_info=True)
    except (OSError, ValueError, ImportError) as failure:
        kind = "" if Path(name).is_dir() else ", which is no directory here,"
        problem = f"model_name_or_path: from {name!r}{kind} transformers gives no causal language model: {failure}"
        raise ConfigError([problem]) from failure
    if loading["missing_keys"]:  # transformers has filled them with random numbers
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise ConfigError([f"model_name_or_path: {name!r} is no causal language model (it lacks {missing})"])
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return model.to(device).eval(), tokenizer


def go_on(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    decoding: Decoding,
    seed: int,
    show: Callable[[str], None] | None = None,
) -> Generation:
    """Let a model go on after a prompt. The random numbers of the caller stay as they are.

    Args:
        show: is given the text, prompt included, piece by piece while it comes. A piece ends with a character: bytes of one
            that is spread over several tokens wait for the last of them.

    Raises:
        DataError: the prompt fills the model's context, or is empty and the tokenizer has no token to begin with.
    """
    given = tokenizer(prompt)["input_ids"] or [_first_token(tokenizer)]
    context = positions_of(model.config)
    room = context - len(given) if context is not None else decoding.max_new_tokens
    if room < 1:
        raise DataError(f"the prompt {_short(prompt)} has {len(given):,} tokens, and the context of the model {context:,}")
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    end_ids = set(ends) if isinstance(ends, list) else {ends}
    padding = tokenizer.pad_token_id
    sampling = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k or 0}
    settings = GenerationConfig(
        max_new_tokens=min(decoding.max_new_tokens, room),
        do_sample=decoding.temperature > 0,
        num_beams=1,
        use_cache=True,
        eos_token_id=ends,
        pad_token_id=padding if padding is not None else next(iter(end_ids)),
        **(sampling if decoding.temperature > 0 else {}),
    )
    inputs = torch.tensor([given], device=model.device)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        output = model.generate(
            inputs=inputs,
            attention_mask=torch.ones_like(inputs),
            generation_config=settings,
            streamer=Pieces(tokenizer, show) if show is not None else None,
        )
    ids = output[0].tolist()
    made = len(ids) - len(given)
    ended = "eos" if ids[-1] in end_ids else "length" if made == decoding.max_new_tokens else "context"
    return Generation(prompt, _decoded(tokenizer, ids)[len(_decoded(tokenizer, given)) :], made, ended)


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    # Decoded together with the prompt: some tokenizers drop the space before the first word.
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _first_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """What a document begins with; where there is no such token, what the one before it ends with."""
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if not isinstance(first, int):
        raise DataError("the prompt is empty, and the tokenizer has no token that a text begins with; give a prompt")
    return first


class Pieces(BaseStreamer):
    """Turns tokens into text as they come. (transformers' TextStreamer waits for a space, which a weak model may never write.)

    What a token adds is the difference of two decodings, with it and without, of the tokens since the piece before the last:
    some tokenizers drop the space before the first word, and the piece before is there to be the first.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, show: Callable[[str], None]):
        self._tokenizer, self._show = tokenizer, show
        self._ids: list[int] = []
        self._start = self._shown = 0

    def put(self, value: torch.Tensor) -> None:
        """Take tokens, of any shape but of one text; the first are those of the prompt."""
        self._ids += value.flatten().tolist()
        new = self._new()
        if new and not new.endswith("\ufffd"):  # with which a decoder stands for a character that is not complete
            self._show(new)
            self._start, self._shown = self._shown, len(self._ids)

    def end(self) -> None:
        """Show what has waited, complete or not."""
        self._show(self._new())

    def _new(self) -> str:
        known = _decoded(self._tokenizer, self._ids[self._start : self._shown])
        return _decoded(self._tokenizer, self._ids[self._start :])[len(known) :]


def generations(config: GenerateConfig, prompts: list[str], show: Callable[[str], None] | None = None) -> Iterator[Generation]:
    """The continuations of all prompts in their order; what the stage and the command share.

    Raises:
        ConfigError: there is no such model, or no prompt.
        DataError: a prompt fills the model's context.
    """
    if not prompts:
        raise ConfigError(["prompt: there is nothing to go on from; give --prompt or --prompt_file"])
    disable_progress_bar()
    set_verbosity_error()
    model, tokenizer = load(config.model_name_or_path)
    decoding = Decoding(config.max_new_tokens, config.temperature, config.top_p, config.top_k)
    for prompt in prompts:
        for number in range(config.num_return_sequences):
            yield go_on(model, tokenizer, prompt, decoding, seed_of(config.seed, number, prompt), show)


def seed_of(*parts: object) -> int:
    """A seed that depends on all the parts. With one seed for all, a weak model writes the same after different prompts."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:7], "big")


def prompts_of(config: GenerateConfig) -> list[str]:
    """The prompts that the settings name.

    Raises:
        DataError: the file cannot be read, or has no such column.
    """
    if config.prompt_file is None:
        return config.prompt or []
    path = Path(config.prompt_file)
    if path.suffix.lower() == ".txt":
        try:
            return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as failure:
            raise DataError(f"prompt_file: {path} cannot be read: {failure}") from None
    rows = read_table(path)
    column = "prompt" if "prompt" in rows[0].values else pick_column(rows, None, ("text",), "prompt_file")
    for row in rows:
        if not isinstance(row.values.get(column), str):
            raise DataError(f"prompt_file: {row.place} has no text in its column {column!r}")
    return [row.values[column] for row in rows]


def write_generations(config: GenerateConfig, workspace: Workspace) -> dict[str, Any]:
    """Generate into the workspace; see `generate.generate`."""
    texts = tokens = 0
    first: list[dict[str, str]] = []
    with (workspace.directory / GENERATIONS).open("w", encoding="utf-8") as file:
        for generation in generations(config, prompts_of(config)):
            file.write(json.dumps(asdict(generation), ensure_ascii=False) + "\n")
            texts, tokens = texts + 1, tokens + generation.tokens
            if texts <= _IN_MANIFEST:
                workspace.say(readable(generation.prompt + generation.text) + "\n")
                first.append({"prompt": generation.prompt, "text": generation.text})
    return {"n": texts, "tokens": tokens, "samples": first}


def stream(config: GenerateConfig) -> int:
    """Generate to the terminal; see `generate.show`."""
    prompts = prompts_of(config)
    if not prompts and config.prompt_file is None and not sys.stdin.isatty():
        prompts = [line for line in sys.stdin.read().splitlines() if line.strip()]

    def show(piece: str) -> None:
        print(readable(piece), end="", flush=True)

    try:
        for number, generation in enumerate(generations(config, prompts, show), start=1):
            print("\n" if number < len(prompts) * config.num_return_sequences else "", flush=True)
            if generation.ended == "context":
                print(f"llmkit: ended by the context length of the model, after {generation.tokens} tokens", file=sys.stderr)
    except KeyboardInterrupt:
        print(flush=True)
        return 130
    return 0


def readable(text: str) -> str:
    """Text that leaves the terminal as it is, whatever the model writes."""
    return text.translate(_CONTROLS)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
