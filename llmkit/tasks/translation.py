"""Translation, by an encoder-decoder, or by a causal model that goes on after a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from llmkit.errors import DataError
from llmkit.tasks import base
from llmkit.tasks.features import IGNORED
from llmkit.tasks.language import LanguageTask, smoothing_of, told, without_end
from llmkit.tasks.tables import Row, pick_column, places

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PROMPT = "Source: {source}\nTranslation:\n"
"""What a causal model goes on from, where nothing else is said."""

_PAIR = "translation"  # the column that the hub's parallel corpora have: {"en": ..., "de": ...}
_SOURCES, _TARGETS = ("source", "src"), ("target", "tgt")


@dataclass(kw_only=True)
class Example(base.Example):
    """A sentence and its translation."""

    source: str
    translation: str
    """Empty where none is known."""

    def input(self) -> str:
        return self.source

    def target(self) -> str:
        return self.translation


class Translation(LanguageTask[Example]):
    """One text into another language."""

    name = "translation"
    title = "Translator"
    usage = (
        "from llmkit.tasks.loading import load_task_model\n"
        "from llmkit.tasks.translation import Example\n\n"
        'task, model, tokenizer = load_task_model("PATH_OF_THIS_DIRECTORY")\n'
        'asked = Example(id="1", place="", source="How are you?", translation="")\n'
        "print(task.write(model, tokenizer, [asked], batch_size=1))"
    )
    metrics: ClassVar[dict[str, bool]] = {"chrf": True, "bleu": True, "perplexity": False, "token_accuracy": True}

    def __init__(
        self,
        source_lang: str | None,
        target_lang: str | None,
        prompt_template: str | None = None,
        max_new_tokens: int = 128,
        num_beams: int = 1,
        label_smoothing: float = 0.0,
        generation_max_samples: int = 200,
    ):
        """Set up; see the settings of the same names, and `LanguageTask`."""
        super().__init__(max_new_tokens, num_beams, label_smoothing)
        self.source_lang, self.target_lang, self.prompt_template = source_lang, target_lang, prompt_template
        self.generation_max_samples = generation_max_samples

    @classmethod
    def of_config(cls, config: Any) -> Translation:
        return cls(
            config.source_lang,
            config.target_lang,
            config.prompt_template,
            config.max_new_tokens,
            config.num_beams,
            smoothing_of(config),
            config.generation_max_samples,
        )

    @classmethod
    def of_model(cls, stored: Mapping[str, Any], config: PretrainedConfig) -> Translation:
        languages = (stored.get("source_lang"), stored.get("target_lang"))
        task = cls(*languages, stored.get("prompt_template"), **told(stored))
        task.adapt_to(config, 0)
        return task

    def stored(self) -> dict[str, Any]:
        names = ("source_lang", "target_lang", "prompt_template")
        return {**super().stored(), **{name: getattr(self, name) for name in names}}

    def auto_class_of(self, config: PretrainedConfig) -> str:
        return "AutoModelForSeq2SeqLM" if config.is_encoder_decoder else "AutoModelForCausalLM"

    # Examples

    def read(self, rows: list[Row], columns: Any, is_labelled: bool = True) -> list[Example]:
        pick_source, pick_target = self._columns(rows, columns, is_labelled)
        found, sourceless, targetless = [], [], []
        for row in rows:
            source, translation = pick_source(row), pick_target(row) if is_labelled else ""
            if not isinstance(source, str) or not source.strip():
                sourceless.append(row)
            elif not isinstance(translation, str) or (is_labelled and not translation.strip()):
                targetless.append(row)
            else:
                identity = str(row.values.get("id", Path(row.place).name))
                found.append(Example(id=identity, place=row.place, source=source.strip(), translation=translation.strip()))
        for kind, bad in (("to translate", sourceless), ("as its translation", targetless)):
            if bad:
                raise DataError(f"{len(bad)} rows have no text {kind}: {places(bad)}; remove or fill them")
        return found

    def _columns(self, rows: list[Row], columns: Any, is_labelled: bool) -> tuple[Callable[[Row], Any], Callable[[Row], Any]]:
        """How source and target are found in a row.

        Raises:
            DataError: it is not clear where they stand.
        """
        languages = (columns.source_lang or self.source_lang, columns.target_lang or self.target_lang)
        first = rows[0].values
        if isinstance(first.get(_PAIR), dict) and not columns.source_column:
            kinds = first[_PAIR]
            wanted = languages if is_labelled else languages[:1]
            missing = [language for language in wanted if language not in kinds]
            if missing:
                raise DataError(
                    f"source_lang, target_lang: {rows[0].place} has the languages {', '.join(kinds)}; "
                    f"say with --source_lang and --target_lang from which into which"
                )
            return tuple(lambda row, key=key: (row.values.get(_PAIR) or {}).get(key) for key in languages)  # type: ignore[return-value]
        names = []
        for asked, language, usual, setting in (
            (columns.source_column, languages[0], _SOURCES, "source_column"),
            (columns.target_column, languages[1], _TARGETS, "target_column"),
        ):
            if setting == "target_column" and not is_labelled:
                names.append("")
            elif asked is None and language in first:
                names.append(language)
            else:
                names.append(pick_column(rows, asked, usual, setting))
        return tuple(lambda row, name=name: row.values.get(name) for name in names)  # type: ignore[return-value]

    def learn(self, train: list[Example]) -> Iterator[str]:
        if self.source_lang and self.target_lang:
            yield f"from {self.source_lang} into {self.target_lang}"

    # Model

    def new_config(self, tokenizer: Any, config: PretrainedConfig) -> dict[str, Any]:
        """Of an encoder-decoder: its decoder begins with the token that begins a text, which is no padding, since some
        architectures have no embedding for that. The defaults of a config class are the tokens of another vocabulary."""
        if not config.is_encoder_decoder:
            return {}
        end = tokenizer.eos_token_id
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else end
        forced = {"forced_eos_token_id": end} if hasattr(config, "forced_eos_token_id") else {}
        return {"decoder_start_token_id": start, **forced}

    def what_it_is(self) -> str:
        kind = "An encoder-decoder" if self.is_encoder_decoder else "A causal language model"
        pair = f" from {self.source_lang} into {self.target_lang}" if self.source_lang and self.target_lang else ""
        return f"{kind} that translates{pair}"

    def described(self) -> dict[str, Any]:
        return {"languages": [self.source_lang, self.target_lang]} if self.source_lang and self.target_lang else {}

    def sequences(self, example: Example, tokenizer: Any) -> tuple[list[int], list[int]]:
        target = self._target_ids(example.translation, tokenizer)
        read = self.prompt(example, tokenizer)
        if self.is_encoder_decoder:
            return read, target
        return read + target, [IGNORED] * len(read) + target

    def _target_ids(self, text: str, tokenizer: Any) -> list[int]:
        if self.is_encoder_decoder:  # some tokenizers have a vocabulary for each side
            ids = without_end(tokenizer(text_target=text, verbose=False)["input_ids"], tokenizer)
        else:
            ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return [*ids, tokenizer.eos_token_id]

    def prompt(self, example: Example, tokenizer: Any) -> list[int]:
        """An encoder reads the source (in the template, if there is one) and an EOS; a causal model the template."""
        template = self.prompt_template or ("{source}" if self.is_encoder_decoder else PROMPT)
        ids = without_end(tokenizer(template.replace("{source}", example.source), verbose=False)["input_ids"], tokenizer)
        return [*ids, tokenizer.eos_token_id] if self.is_encoder_decoder else ids

    # Metrics

    def written_metrics(self, data: list[Example], texts: list[str]) -> dict[str, float]:
        from llmkit.tasks.translation_metrics import bleu, chrf, language_for, score

        references = [example.translation for example in data]
        language = language_for(self.target_lang, references)
        return {"chrf": score(chrf(), texts, references), "bleu": score(bleu(language), texts, references)}

    def samples_written(self, data: list[Example]) -> list[Example]:
        return data[: self.generation_max_samples]
