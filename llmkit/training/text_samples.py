"""What a model writes while it is trained: text after fixed prompts, at each evaluation, in samples.jsonl."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmkit.pipeline.artefact import write_synced
from llmkit.tasks.generation import Decoding, go_on, readable, seed_of
from llmkit.training.ledger import read_ledger

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextSamples(TrainerCallback):
    """Lets the main process write a line for each prompt after an evaluation.

    The same random numbers serve at every evaluation, so that what differs is the model. Those of training stay as they are.
    """

    def __init__(
        self,
        path: Path,
        tokenizer: PreTrainedTokenizerBase,
        prompts: list[str],
        tokens: int,
        say: Callable[[str], None],
        partitioned: bool,
    ):
        """Set up.

        Args:
            tokens: longest continuation.
            partitioned: whether no process has the whole weights (ZeRO-3, FSDP); there are no samples then.
        """
        self.path, self.tokenizer, self.prompts, self.say = path, tokenizer, prompts, say
        self.decoding = Decoding(tokens)
        self._missing = "the weights are spread over the processes" if partitioned else None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Forget what a killed run wrote after the checkpoint it is resumed from, as the ledger does."""
        if not state.is_world_process_zero:
            return
        if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            self._missing = "the weights are spread over the processes"
        if self._missing and self.prompts:
            self.say(f"no samples of text on the way: {self._missing}")
        if self.path.exists():
            evaluated = {entry["step"] for entry in state.log_history if "eval_loss" in entry}
            kept = [entry for entry in read_ledger(self.path) if entry["step"] in evaluated]
            write_synced(self.path, _lines(kept))

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Sample, with the weights as they are; the other ranks wait in their next collective operation."""
        if not state.is_world_process_zero or self._missing or not self.prompts:
            return
        entries = []
        was_training = model.training
        model.eval()
        try:
            for prompt in self.prompts:
                made = go_on(model, self.tokenizer, prompt, self.decoding, seed_of(args.seed, prompt))
                entries.append({"step": state.global_step, **asdict(made)})
        except Exception as failure:  # an architecture that cannot generate is no reason to end its training
            self._missing = f"{type(failure).__name__}: {failure}"
            self.say(f"no samples of text: {self._missing}")
            return
        finally:
            model.train(was_training)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_lines(entries))

    def last(self) -> list[dict[str, Any]]:
        """The samples of the last evaluation: step, prompt, text, tokens, ended."""
        entries = read_ledger(self.path)
        return [entry for entry in entries if entry["step"] == entries[-1]["step"]]


def _lines(entries: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def samples_section(samples: list[dict[str, Any]]) -> str:
    """Samples as Markdown for a model card, each in a block that nothing in its text can end."""
    blocks = []
    for sample in samples:
        text = readable(sample["prompt"] + sample["text"])
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
        blocks.append(f"{fence}text\n{text}\n{fence}")
    return f"After step {samples[0]['step']:,}, sampled after fixed prompts:\n\n" + "\n\n".join(blocks)
