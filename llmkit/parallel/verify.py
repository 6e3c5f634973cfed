"""`llmkit verify`: prove that a launch layout computes what one process computes.

A small model is pretrained by `llmkit pretrain` as it is, under the layout and on one process: the same seed model, the same
samples in the same order, as many samples a step. What cannot differ, the order of the samples, has to be equal; what rounding
may change is held against tolerances.

**Tolerances.** Sums of floating point numbers in another order differ in their last bits (Higham 2002, Accuracy and Stability
of Numerical Algorithms, section 4.2). A layout shares out sums over samples, over rows of a matrix or over ranks, so at each
step its losses and gradients differ by some roundings, and training makes the differences of earlier steps grow. How fast
depends on model, data, learning rate and precision, so it is measured: the run on one process is repeated with the samples of
a step in other micro-batches, which is the same computation with its sums in other orders. At step t, relative to the
reference,

    tolerance(t) = max(FLOOR, SPREAD x spread(t))                                                                          (1)

where spread(t) is the largest difference of a repetition at any step up to t. A layout and a repetition draw their roundings
from one source, so the ratio of their differences is of the order of one; SPREAD = 10 leaves room for repetitions that agree
by chance, and for layouts that order more sums anew. FLOOR is what the roundings of one step can do, where repetitions show
nothing: they keep the order of sums within a sample, which tensor and context parallel change, and within a norm. Sums are in
float32 in every precision, with u32 = 2^-24; what they add is rounded to the precision, with unit roundoff u (2^-24, 2^-11,
2^-8). Roundings are taken as independent (Higham 2002, section 2.8), so that those of a sum of n grow as sqrt(n).

    of a loss, a mean over n tokens                                      32 u32 + 4 u / sqrt(n)                            (2)
    of a gradient norm, over p weights                                   sqrt(p) u32 + u                                   (3)
    of a weight, relative to the largest of its tensor                   32 u32 + 4 u                                      (4)

In (4), a layout may keep its weights in the precision, as DeepSpeed does. The first loss, before any update, has to be within
(2) alone: all start from the same weights.

**Updates that show the size of their gradient.** Adam divides by the root of the second moment (Kingma and Ba 2015), so that a
gradient that is wrong by a factor (summed in place of averaged, clipped by a doubled norm) moves a weight as the right one
does, and a gradient that is nothing but rounding moves it by the whole learning rate. With an epsilon no smaller than the
gradients the update is nearly lr x m / epsilon: factors show, and a difference d of gradients moves a weight by no more than
lr x d / epsilon a step. The gradients here are about 1e-3, and so is epsilon. The clipping norm lies among the gradient norms
of the first steps, so that it acts at some and not at others.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llmkit import resources
from llmkit.config import Source, resolve
from llmkit.errors import ConfigError, LLMKitError, StageFailed, StageStopped
from llmkit.parallel.launch import data_ranks, gpu_count, launch_stage, process_count
from llmkit.parallel.layout import Layout, read_layout
from llmkit.pipeline.artefact import LEDGER, Artefact
from llmkit.stages import STAGES, prepare_tokens

UNIT_ROUNDOFF = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}
"""Half the distance from 1 to the next number."""

SPREAD = 10.0
"""What a layout may differ by, in differences of the repetitions; see (1)."""

_U32 = UNIT_ROUNDOFF["fp32"]

# Sizes that up to 8 tensor or 4 pipeline ranks can share. No dropout: each rank draws its own.
_SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 512,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": _SHAPE,
    "qwen3": {**_SHAPE, "head_dim": 8},
    "gpt2": {
        "n_embd": 128,
        "n_layer": 4,
        "n_head": 16,
        "vocab_size": 512,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
}
_BLOCK = 64
_SAMPLES = 16
_SETTINGS = {
    "block_size": _BLOCK,
    "per_device_eval_batch_size": 4,
    "learning_rate": 2e-3,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0.0,
    "max_grad_norm": 1.0,
    "adam_epsilon": 1e-3,
    "logging_steps": 1,
    "save_steps": 1_000_000,
    "eval_steps": 1_000_000,
    "sample_prompts": [],
}

_BEGIN, _END = "<!-- llmkit verify --all --write -->", "<!-- end -->"


@dataclass(frozen=True)
class Run:
    """What a training run leaves to compare."""

    directory: Path
    processes: int
    losses: list[float]
    """Of each step."""
    gradient_norms: list[float]
    """Of each step, before clipping."""
    orders: list[str]
    """Digest of all samples up to each step, in their order; see `training.order.Digesting`."""
    validation_loss: float

    @classmethod
    def load(cls, directory: Path) -> Run:
        """Read the ledger of a `pretrain` result."""
        from llmkit.training.ledger import read_ledger

        manifest = Artefact.open(directory, "pretrain").manifest
        entries = read_ledger(directory / LEDGER)
        steps = [entry for entry in entries if "loss" in entry]
        return cls(
            directory,
            manifest.metrics["processes"],
            [entry["loss"] for entry in steps],
            [entry.get("grad_norm", math.nan) for entry in steps],
            [entry.get("data_chain", "") for entry in steps],
            next(entry["eval_loss"] for entry in reversed(entries) if "eval_loss" in entry),
        )

    @cached_property
    def weights(self) -> dict[str, Any]:
        """The final weights by name, gathered, as `from_pretrained` gives them; float64."""
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        model = AutoModelForCausalLM.from_pretrained(self.directory, dtype="float32")
        return {name: weight.double() for name, weight in model.state_dict().items()}


@dataclass(frozen=True)
class Quantity:
    """One quantity of a layout beside the reference, where it differs most for its tolerance."""

    name: str
    difference: float
    """Relative to the reference; of the order of samples, the steps at which it differs."""
    tolerance: float
    first_step: int | None = None
    """The first step at which it is beyond its tolerance, from 1; None: it never is, or it has no steps."""
    tensor: str | None = None
    """The tensor meant, and the largest difference in it."""
    largest: float | None = None

    @property
    def passed(self) -> bool:
        """Whether it is within its tolerance everywhere; what is no number is not."""
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class Verdict:
    """How a layout compares with one process."""

    layout: str
    against: str
    model_type: str
    precision: str
    processes: int
    steps: int
    samples_per_step: int
    quantities: list[Quantity]

    @property
    def passed(self) -> bool:
        return all(quantity.passed for quantity in self.quantities)

    def table(self) -> str:
        """What a person reads: a line for each quantity."""
        lines = [
            f"{self.layout}: {self.processes} processes against {self.against}; {self.model_type}, {self.precision}, "
            f"{self.steps} steps of {self.samples_per_step} samples",
            f"  {'':17} {'difference':>10} {'tolerance':>10}",
        ]
        for quantity in self.quantities:
            word = "pass" if quantity.passed else "FAIL"
            if quantity.first_step is not None:
                word += f" from step {quantity.first_step} on"
            if quantity.tensor is not None:
                word += f"; {quantity.tensor}, by up to {quantity.largest:.1e}"
            lines.append(f"  {quantity.name:17} {quantity.difference:10.1e} {quantity.tolerance:10.1e}  {word}")
        end = "computes what one process computes" if self.passed else "does NOT compute what one process computes"
        return "\n".join([*lines, f"{self.layout} {end}"])


def compare(run: Run, reference: Run, repetitions: Sequence[Run], precision: str, tokens_per_step: int) -> list[Quantity]:
    """Hold a run against the reference, with tolerances by its repetitions.

    Args:
        precision: fp32, fp16 or bf16.
        tokens_per_step: over which a loss is a mean.
    """
    u = UNIT_ROUNDOFF[precision]
    of_loss = 32 * _U32 + 4 * u / math.sqrt(tokens_per_step)
    weights = sum(weight.numel() for weight in reference.weights.values())
    wrong = [step for step, (ours, theirs) in enumerate(zip(run.orders, reference.orders, strict=True), 1) if ours != theirs]
    return [
        Quantity("order of samples", float(len(wrong)), 0.0, wrong[0] if wrong else None),
        _series("first loss", of_loss, run.losses[:1], reference.losses[:1], []),
        _series("loss", of_loss, run.losses, reference.losses, [other.losses for other in repetitions]),
        _series(
            "gradient norm",
            math.sqrt(weights) * _U32 + u,
            run.gradient_norms,
            reference.gradient_norms,
            [other.gradient_norms for other in repetitions],
        ),
        _series(
            "validation loss",
            of_loss,
            [run.validation_loss],
            [reference.validation_loss],
            [[other.validation_loss] for other in repetitions],
            has_steps=False,
        ),
        _weights(32 * _U32 + 4 * u, run, reference, repetitions),
    ]


def _series(
    name: str,
    floor: float,
    run: list[float],
    reference: list[float],
    repetitions: list[list[float]],
    has_steps: bool = True,
) -> Quantity:
    """A quantity that has a value at each step."""
    spread, worst, first = 0.0, (-1.0, 0.0, floor), None
    for step, (ours, theirs) in enumerate(zip(run, reference, strict=True), 1):
        spread = max([spread, *(_relative(other[step - 1], theirs) for other in repetitions)])
        difference, tolerance = _relative(ours, theirs), max(floor, SPREAD * spread)
        if first is None and not difference <= tolerance:
            first = step
        worst = max(worst, (difference / tolerance, difference, tolerance))
    return Quantity(name, worst[1], worst[2], first if has_steps else None)


def _relative(value: float, reference: float) -> float:
    """The relative difference; none between two that are both no numbers, as a skipped step has in float16."""
    if value == reference or (math.isnan(value) and math.isnan(reference)):
        return 0.0
    difference = abs(value - reference) / abs(reference) if reference else math.inf
    return math.inf if math.isnan(difference) else difference


def _weights(floor: float, run: Run, reference: Run, repetitions: Sequence[Run]) -> Quantity:
    """The tensor that differs most for its tolerance."""
    odd = sorted(run.weights.keys() ^ reference.weights.keys())
    if odd:
        return Quantity("weights", math.inf, floor, tensor=f"{odd[0]} is in one of them only", largest=math.inf)
    found = []
    for name, theirs in reference.weights.items():
        if not theirs.is_floating_point():
            continue
        scale = theirs.abs().max().item()
        largest = (run.weights[name] - theirs).abs().max().item()
        spread = max((_relative_to(scale, other.weights[name] - theirs) for other in repetitions), default=0.0)
        difference, tolerance = _relative_to(scale, run.weights[name] - theirs), max(floor, SPREAD * spread)
        found.append((difference / tolerance, Quantity("weights", difference, tolerance, tensor=name, largest=largest)))
    return max(found, key=lambda pair: pair[0])[1]


def _relative_to(scale: float, difference: Any) -> float:
    largest = difference.abs().max().item()
    return 0.0 if largest == 0 else math.inf if scale == 0 or math.isnan(largest) else largest / scale


def cannot_run(layout: Layout, gpus: int) -> str | None:
    """Why a layout cannot be verified on this machine, or None where it can."""
    if layout.machines > 1:
        return f"has {layout.machines} machines"
    if layout.is_single:
        return "is one process, which the others are compared with"
    if layout.precision == "fp8":
        return "fp8 has scales that depend on what each process has seen: there is no tolerance for it"
    if layout.precision == "fp16" and (layout.use_cpu or gpus == 0):
        return "fp16 needs a GPU"
    if layout.engine == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        return "DeepSpeed is not installed"
    if "nvme" in (layout.offload_optimizer, layout.offload_weights):
        if gpus == 0:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # it warns otherwise
        from deepspeed.ops.op_builder import AsyncIOBuilder

        if not AsyncIOBuilder().is_compatible(verbose=False):
            return "offload to NVMe needs libaio and its headers"
    return None


class Verification:
    """Runs and their references, each made once, in a directory."""

    def __init__(
        self, directory: Path, steps: int = 20, against: str = "single", say: Callable[[str], None] = print, **settings: Any
    ):
        """Set up.

        Args:
            directory: where runs and their logs are left; what earlier ones left of the same name is replaced.
            steps: optimizer steps of a run.
            against: the layout of the reference.
            settings: of `pretrain`, for all runs.
        """
        self.directory, self.steps, self.against, self.say, self.settings = directory, steps, against, say, settings
        self._references: dict[tuple[str, str, int], tuple[Run, list[Run]]] = {}

    def verify(
        self,
        layout: str,
        model_type: str = "llama",
        precision: str | None = None,
        script: Path | None = None,
        **settings: Any,
    ) -> Verdict:
        """Compare a layout with the reference.

        Args:
            layout: a shipped one by name, or an accelerate config by path.
            precision: fp32, bf16 or fp16; None: that of the layout, or fp32.
            script: what the layout's processes run, in place of the recipe.
            settings: of `pretrain`, for the layout alone: what must not change the result.

        Raises:
            ConfigError: the layout cannot train this model.
            StageFailed: a run ended with an error; the message ends with its last words.
        """
        chosen = precision or {"bf16": "bf16", "fp16": "fp16"}.get(read_layout(layout).precision or "", "fp32")
        ranks = data_ranks(layout)
        samples = -(-_SAMPLES // ranks) * ranks
        name = f"{Path(layout).stem}-{model_type}-{chosen}"
        # The layout first: what it refuses is known before three runs of one process are made.
        run = self.train(name, layout, model_type, chosen, samples, {"per_device_train_batch_size": 4, **settings}, script)
        reference, repetitions = self.reference(model_type, chosen, samples)
        missing = process_count(layout) - run.processes  # a launch may fall back on fewer, and compute the right thing
        quantities = [
            Quantity("missing processes", float(abs(missing)), 0.0),
            *compare(run, reference, repetitions, chosen, samples * (_BLOCK - 1)),
        ]
        return Verdict(Path(layout).stem, self.against, model_type, chosen, run.processes, self.steps, samples, quantities)

    def train(
        self,
        name: str,
        layout: str,
        model_type: str,
        precision: str,
        samples: int,
        settings: dict[str, Any],
        script: Path | None = None,
    ) -> Run:
        """Pretrain under a layout, in a directory of this name; see `verify`."""
        asked = {
            **_SETTINGS,
            "tokens": str(self._tokens),
            "model_type": model_type,
            "config_overrides": MODELS[model_type],
            "max_steps": self.steps,
            "global_batch_size": samples,
            "bf16": precision == "bf16",
            "fp16": precision == "fp16",
            **self.settings,
            **settings,
        }
        self.say(f"{name}: training")
        log = self.directory / f"{name}.log"
        output = self.directory / name
        stage = STAGES["pretrain"]
        resolved = resolve(stage.config_class, [Source(asked, dict.fromkeys(asked, "llmkit verify"))])
        try:
            return Run.load(launch_stage(stage, resolved, output, layout, force=True, script=script, log=log).directory)
        except StageFailed as failure:
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
            raise StageFailed("\n".join([f"{failure}; its last words:", *last])) from failure
        except LLMKitError as failure:
            failure.reported = False  # it was, in the log
            raise

    def reference(self, model_type: str, precision: str, samples: int) -> tuple[Run, list[Run]]:
        """One process, and its repetitions with other micro-batches."""
        key = (model_type, precision, samples)
        if key not in self._references:
            runs = []
            for size in (_SAMPLES, 4, 1):
                name = f"{self.against}-{model_type}-{precision}-{samples}-by-{size}"
                settings = {"per_device_train_batch_size": size}
                runs.append(self.train(name, self.against, model_type, precision, samples, settings))
            self._references[key] = runs[0], runs[1:]
        return self._references[key]

    @cached_property
    def _tokens(self) -> Path:
        """Token shards of synthetic text, by the stages that make them."""
        self.directory.mkdir(parents=True, exist_ok=True)
        corpus = self.directory / "corpus.jsonl"
        corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in synthetic_texts()), encoding="utf-8")
        asked = {"train_file": [str(corpus)], "vocab_size": _SHAPE["vocab_size"]}
        resolved = resolve(STAGES["pretrain"].config_class, [Source(asked, dict.fromkeys(asked, "llmkit verify"))])
        with (self.directory / "tokens.log").open("w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            return Path(prepare_tokens(resolved, self.directory).config.tokens)


def synthetic_texts(count: int = 120) -> list[str]:
    """Texts of made-up words, each of which is followed by one of eight: the same always, and with something to learn."""
    draw = random.Random(0)
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(400)]
    followers = {word: draw.choices(words, k=8) for word in words}
    texts = []
    for _ in range(count):
        said = [draw.choice(words)]
        while len(said) < 150:
            said.append(draw.choice(followers[said[-1]]))
        texts.append(" ".join(said) + ".")
    return texts


def verify_all(
    verification: Verification, model_types: Sequence[str], precision: str | None
) -> tuple[list[Verdict], dict[str, str]]:
    """Verify every shipped layout that can run here.

    Returns:
        The verdicts, and for each layout, or layout and model, that was not run the reason.
    """
    verdicts, reasons = [], {}
    for name in resources.names("accelerate_configs"):
        reason = cannot_run(read_layout(name), gpu_count())
        if reason:
            reasons[name] = reason
            continue
        for model_type in model_types:
            try:
                verdicts.append(verification.verify(name, model_type, precision))
            except (StageFailed, StageStopped):
                raise
            except LLMKitError as refusal:
                reasons[f"{name}, {model_type}"] = " ".join(str(refusal).split())
            else:
                verification.say(verdicts[-1].table())
    return verdicts, reasons


def markdown(verdicts: Sequence[Verdict], reasons: dict[str, str]) -> str:
    """The table for a page: for each layout the worst difference of any model, and what was not run, with the reason."""
    names = [quantity.name for quantity in verdicts[0].quantities[2:]] if verdicts else []
    lines = [f"| layout | processes | {' | '.join(names)} | models |", "|---|---|" + "---|" * len(names) + "---|"]
    for layout in dict.fromkeys(verdict.layout for verdict in verdicts):
        ours = [verdict for verdict in verdicts if verdict.layout == layout]
        cells = [str(ours[0].processes)]
        for number in range(2, len(names) + 2):
            worst = max((verdict.quantities[number] for verdict in ours), key=lambda one: one.difference / one.tolerance)
            cells.append(f"{worst.difference:.1e} of {worst.tolerance:.1e}" + ("" if worst.passed else " **fails**"))
        cells.append(", ".join(verdict.model_type for verdict in ours))
        lines.append(f"| `{layout}` | {' | '.join(cells)} |")
    lines += ["", "Not run:", "", *(f"- `{name}`: {reason}" for name, reason in reasons.items())] if reasons else []
    return "\n".join(lines)


def write_between_markers(page: Path, text: str) -> None:
    """Replace what stands between the markers of a page.

    Raises:
        ConfigError: the page has no markers.
    """
    try:
        before, rest = page.read_text(encoding="utf-8").split(_BEGIN)
        after = rest.split(_END, 1)[1]
    except (OSError, ValueError, IndexError):
        raise ConfigError([f"--write: {page} has no lines {_BEGIN!r} and {_END!r} to write between"], "command") from None
    page.write_text(f"{before}{_BEGIN}\n\n{text}\n\n{_END}{after}", encoding="utf-8")


def main(words: list[str]) -> int:
    """The command; 1 where a layout does not compute what one process computes."""
    parser = argparse.ArgumentParser(prog="llmkit verify", description="Prove that a layout computes what one process does.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--accelerate_config", metavar="NAME", default="ddp", help="launch layout, by name or path (ddp)")
    which.add_argument("--all", action="store_true", help="every shipped layout that can run here")
    parser.add_argument("--against", metavar="NAME", help="layout of one process to compare with (single, or cpu)")
    parser.add_argument("--model_type", nargs="+", choices=MODELS, help="llama; with --all, each of them")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps (20)")
    parser.add_argument("--precision", choices=UNIT_ROUNDOFF, help="that of the layout, or fp32")
    parser.add_argument("--json", type=Path, metavar="FILE", help="a file for all that is found")
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY", help="where the runs are kept; else they are removed")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="a Markdown page for the table, between its markers")
    given = parser.parse_args(words)
    if given.steps < 1:
        raise ConfigError([f"--steps: is {given.steps}, must be at least 1"], "command")
    against = given.against or ("cpu" if not given.all and read_layout(given.accelerate_config).use_cpu else "single")
    if not read_layout(against).is_single:
        raise ConfigError([f"--against: {against} has several processes; compare with cpu or single"], "command")
    with tempfile.TemporaryDirectory(prefix="llmkit-verify-") as temporary:
        verification = Verification(given.keep or Path(temporary), given.steps, against)
        reasons: dict[str, str] = {}
        if given.all:
            verdicts, reasons = verify_all(verification, given.model_type or list(MODELS), given.precision)
        else:
            verdicts = []
            for model_type in given.model_type or ["llama"]:
                verdicts.append(verification.verify(given.accelerate_config, model_type, given.precision))
                print(verdicts[-1].table())
    for name, reason in reasons.items():
        print(f"{name}: not run: {reason}")
    if given.json:
        found = [{**asdict(verdict), "passed": verdict.passed} for verdict in verdicts]
        given.json.write_text(json.dumps({"verdicts": found, "not_run": reasons}, indent=1) + "\n", encoding="utf-8")
    if given.write:
        write_between_markers(given.write, markdown(verdicts, reasons))
    return 0 if all(verdict.passed for verdict in verdicts) else 1
