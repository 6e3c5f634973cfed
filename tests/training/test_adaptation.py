"""What of a model is trained, how often, with which settings, and from which teacher."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel, T5Config, T5Model
from transformers.modeling_outputs import CausalLMOutput

from llmkit.config import Source, resolve
from llmkit.errors import ConfigError
from llmkit.pipeline.artefact import Artefact
from llmkit.tasks.tables import read_table
from llmkit.tasks.text_classification import TextClassification
from llmkit.training.distillation import Distillation, Teacher, divergence
from llmkit.training.finetune import FinetuneConfig
from llmkit.training.freezing import freeze
from llmkit.training.ledger import read_ledger
from llmkit.training.search import _distribution
from llmkit.training.seeds import mean_interval
from llmkit.training.trainer import LLMKitTrainer

TINY = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
Resume = Callable[..., Artefact]


class Killed(Exception):
    pass


@pytest.fixture
def resumed_after(run: Any, monkeypatch: pytest.MonkeyPatch) -> Resume:
    """Run `finetune`, end it without warning at the n-th log, and run it again."""

    def resume(output: Path, logs: int, **settings: Any) -> Artefact:
        original, left = LLMKitTrainer.log, [logs]

        def dying(self: Any, *arguments: Any) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            original(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(LLMKitTrainer, "log", dying)
            with pytest.raises(Killed):
                run("finetune", output, **settings)
        return run("finetune", output, **settings)

    return resume


def told(made: Artefact) -> list[tuple[Any, ...]]:
    entries = read_ledger(made.directory / "metrics.jsonl")
    return [(entry["step"], entry.get("loss"), entry.get("eval_loss")) for entry in entries]


def weights(made: Artefact) -> bytes:
    return (made.directory / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def asked(base_model: Artefact, toy_files: tuple[Path, Path], quick: dict[str, Any]) -> dict[str, Any]:
    return {"model_name_or_path": base_model.directory, "train_file": toy_files[0], **quick, "logging_steps": 1}


def settings(**given: Any) -> FinetuneConfig:
    return resolve(FinetuneConfig, [Source({"model_name_or_path": "m", "dataset_name": "llmkit/reviews", **given}, {})]).config


# Frozen weights


def test_frozen_weights_stay_as_they_are_to_the_bit(
    run: Any, asked: dict[str, Any], base_model: Artefact, tmp_path: Path
) -> None:
    made = run("finetune", tmp_path / "m", **{**asked, "num_train_epochs": 1.0, "freeze": ["embeddings", "layers:1"]})
    ours, base = load_file(made.directory / "model.safetensors"), load_file(base_model.directory / "model.safetensors")
    same = {name for name in ours if name in base and torch.equal(ours[name], base[name])}
    assert same == {name for name in base if "embed_tokens" in name or ".layers.0." in name}
    assert made.manifest.metrics["trained_parameters"] < made.manifest.metrics["parameters"]["total"]


def trained(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_lowest_layers_of_encoder_and_decoder_are_frozen_and_modules_by_name() -> None:
    model = T5Model(T5Config(d_model=32, num_layers=3, num_decoder_layers=3, num_heads=2, d_ff=64, d_kv=16, vocab_size=50))
    assert freeze(model, ["layers:2"]).startswith("frozen: layers:2; ")
    assert {name[:15] for name in trained(model) if ".block." in name} == {"encoder.block.2", "decoder.block.2"}
    bert = BertModel(BertConfig(**TINY))
    freeze(bert, ["encoder.layer.*.attention", "pooler"])
    assert not any("attention" in name or "pooler" in name for name in trained(bert))
    assert any("intermediate" in name for name in trained(bert))


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (["layers:3"], "layers:3: the model has 2 layers"),
        (["layers:0"], "layers:0: the model has 2 layers"),
        (["encodr.*"], "no module of the model with weights is called 'encodr"),
        (["*"], "leaves no weights to train"),
    ],
)
def test_what_cannot_be_frozen_is_refused(patterns: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("*", r"\*")):
        freeze(BertModel(BertConfig(**TINY)), patterns)


# Resume, early stopping, gradient checkpointing


@pytest.mark.slow
@pytest.mark.parametrize("logs", [8, 15, 17])
def test_a_resume_in_the_middle_of_an_epoch_is_exact_with_the_patience_that_was_left(
    run: Any, asked: dict[str, Any], resumed_after: Resume, tmp_path: Path, logs: int
) -> None:
    early = {**asked, "eval_steps": 3, "early_stopping_patience": 3, "num_train_epochs": 20.0}
    whole = run("finetune", tmp_path / "whole", **early)
    steps = whole.manifest.metrics["steps"]
    assert steps == whole.manifest.metrics["best_step"] + 9, "it ends three evaluations after the best"
    again = resumed_after(tmp_path / "killed", logs, **early)
    assert again.manifest.metrics["steps"] == steps
    assert told(again) == told(whole)
    assert again.manifest.digest == whole.manifest.digest


@pytest.mark.slow
@pytest.mark.parametrize("adapted", [{}, {"peft": "lora"}, {"freeze": ["embeddings", "layers:1"]}])
def test_gradient_checkpointing_changes_nothing_of_what_is_learned(
    run: Any, asked: dict[str, Any], tmp_path: Path, adapted: dict[str, Any]
) -> None:
    short = {**asked, "max_steps": 6, **adapted}
    plain = run("finetune", tmp_path / "plain", **short)
    frugal = run("finetune", tmp_path / "frugal", **short, activation_checkpointing=True)
    losses = [[loss for _, loss, _ in told(made) if loss is not None] for made in (plain, frugal)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert len(losses[0]) == 6


# Seeds


@pytest.fixture(scope="module")
def several(run: Any, asked: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return run("finetune", tmp_path_factory.mktemp("seeds") / "m", **asked, seeds=[3, 5])


@pytest.mark.slow
def test_each_seed_gives_the_model_that_it_gives_alone(
    run: Any, asked: dict[str, Any], several: Artefact, toy_files: tuple[Path, Path], tmp_path: Path
) -> None:
    """Alone it needs the validation examples of seed 0 named."""
    task = TextClassification([])
    rows = read_table(toy_files[0])
    held = {example.place for example in task.hold_out(task.read(rows, settings()), 0.1, 0)[1]}
    files = {}
    for name, chosen in (("train", False), ("validation", True)):
        files[f"{name}_file"] = tmp_path / f"{name}.jsonl"
        lines = [json.dumps(row.values) + "\n" for row in rows if (row.place in held) == chosen]
        files[f"{name}_file"].write_text("".join(lines))
    for seed, place in ((3, several.directory), (5, several.directory / "seeds/5")):
        alone = run("finetune", tmp_path / str(seed), **{**asked, **files, "seed": seed})
        assert weights(alone) == (place / "model.safetensors").read_bytes()
        AutoModelForSequenceClassification.from_pretrained(place)


def test_seeds_have_mean_and_interval_and_no_checkpoints(several: Artefact) -> None:
    seeds = several.manifest.metrics["seeds"]
    assert seeds["of"] == [3, 5]
    accuracy = seeds["validation"]["accuracy"]
    assert accuracy["values"]["3"] == several.manifest.metrics["validation"]["accuracy"]
    assert accuracy["low"] <= accuracy["mean"] <= accuracy["high"]
    assert accuracy["mean"] == pytest.approx(sum(accuracy["values"].values()) / 2)
    assert {path.name for path in (several.directory / "seeds").iterdir()} == {"5"}
    assert not [path for path in several.directory.rglob("*") if path.name.startswith("checkpoint")]


def test_the_interval_of_a_mean_is_students() -> None:
    found = mean_interval([0.80, 0.84, 0.88])
    assert (found["mean"], found["sd"]) == pytest.approx((0.84, 0.04))
    assert found["high"] - found["mean"] == pytest.approx(4.302653 * 0.04 / 3**0.5, rel=1e-6)


@pytest.mark.slow
def test_a_killed_run_of_several_seeds_goes_on_in_the_second(
    asked: dict[str, Any], several: Artefact, resumed_after: Resume, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = resumed_after(tmp_path / "m", 130, **asked, seeds=[3, 5])
    said = capsys.readouterr().out
    assert "seed 3: finished by an earlier attempt" in said
    assert "going on from checkpoint-22" in said
    assert again.manifest.digest == several.manifest.digest
    assert again.manifest.metrics["seeds"] == several.manifest.metrics["seeds"]


# Search


SPACE = {"learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}, "per_device_train_batch_size": {"choices": [8, 16]}}


@pytest.mark.parametrize(
    ("kind", "span", "proposed"),
    [
        (float, {"low": 0, "high": 1}, {0.25}),
        (float, {"low": 2, "high": 10, "step": 1}, {5.0}),
        (int, {"low": 8.0, "high": 32.0}, {9}),
        (float | None, {"low": 1, "high": 2}, {1.5}),
    ],
)
def test_the_type_of_a_setting_says_whether_whole_numbers_are_proposed(
    kind: Any, span: dict[str, Any], proposed: set[float]
) -> None:
    pytest.importorskip("optuna")
    distribution = _distribution(span, kind)
    assert all(distribution._contains(value) for value in proposed)
    assert distribution._contains(8.5) is False
    assert type(distribution.low) is (int if kind is int else float)


@pytest.mark.slow
def test_a_search_trains_with_the_best_it_found_and_a_killed_one_goes_on(
    run: Any, asked: dict[str, Any], resumed_after: Resume, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = {**asked, "num_train_epochs": 3.0, "search_trials": 3, "search_space": SPACE, "metric_for_best_model": "loss"}
    made = run("finetune", tmp_path / "m", **wanted)
    search = made.manifest.metrics["search"]
    values = [trial["value"] for trial in search["trials"]]
    assert len(values) == len(set(values)) == 3
    assert search["best"]["value"] == min(values) == made.manifest.metrics["validation"]["loss"]
    assert made.manifest.metrics["samples_per_step"] == search["best"]["params"]["per_device_train_batch_size"]
    assert json.loads((made.directory / "search.json").read_text())["trials"] == search["trials"]
    assert not (made.directory / "trials").exists()
    capsys.readouterr()
    again = resumed_after(tmp_path / "killed", 60, **wanted)
    assert "of 3 trials were finished by an earlier attempt" in capsys.readouterr().out
    assert again.manifest.metrics["search"] == search
    assert again.manifest.digest == made.manifest.digest


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"search_trials": 3}, "go together"),
        ({"search_trials": 3, "search_space": {"learning_rat": {"low": 1, "high": 2}}}, "did you mean 'learning_rate'"),
        ({"search_trials": 3, "search_space": {"train_file": {"choices": ["a"]}}}, "train_file is no setting to be searched"),
        ({"search_trials": 3, "search_space": {"learning_rate": {"low": 2, "high": 1}}}, "low must be less than high"),
        ({"search_trials": 3, "search_space": {"learning_rate": {"choices": ["x"]}}}, "learning_rate: 'x' is not a number"),
        ({"search_trials": 3, "search_space": {"optim": [1]}}, "optim: give"),
        ({"search_trials": 3, "search_space": {"weight_decay": {"low": 0, "high": 1, "step": 0}}}, "step must be above 0"),
        (
            {"search_trials": 3, "search_space": {"focal_gamma": {"low": 0, "high": 5}}, "metric_for_best_model": "loss"},
            "focal_gamma changes what the loss measures",
        ),
        ({"seeds": [1]}, "seeds: give two or more"),
        ({"seeds": [1, 1]}, "seeds: give two or more"),
        ({"distillation_alpha": 0.3}, "distillation_alpha: goes with teacher"),
        ({"freeze": ["embeddings"], "random_start": True}, "freeze: leaves random weights"),
        ({"seeds": [0, 1], "resume": "runs/m/checkpoint-3"}, "resume: a checkpoint is one of a single training"),
        ({"search_trials": 3, "search_space": {"problem_type": {"choices": ["regression"]}}}, "no setting to be searched"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settings(**given)


def test_a_missing_optuna_is_named(run: Any, asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.training.search.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'llmkit\[search\]'"):
        run("finetune", tmp_path / "m", **asked, search_trials=1, search_space=SPACE)


# A teacher


def test_the_divergence_is_that_of_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(5, 4, generator=generator), torch.randn(5, 4, generator=generator)
    ours, theirs = torch.softmax(student / 3, -1), torch.softmax(teacher / 3, -1)
    assert divergence(student, teacher, 3.0) == pytest.approx(float(9 * (theirs * (theirs / ours).log()).sum()), rel=1e-5)
    assert divergence(teacher, teacher, 3.0) == pytest.approx(0, abs=1e-5)


def test_of_tokens_only_those_that_are_learned_count_each_the_same() -> None:
    class Fixed(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:
            return CausalLMOutput(logits=torch.nn.functional.one_hot(input_ids, 9).float() * 3)

    ids, labels = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[-100, -100, 3, 4]])
    logits = torch.zeros(1, 4, 9)
    given = Distillation(Teacher(Fixed(), None, 7), lambda *_, **__: torch.tensor(10.0), 2.0, 0.25)
    assert given.loss({"logits": logits}, labels) == 10, "the teacher was not asked"
    given.ask({"input_ids": ids, "labels": labels})
    soft = torch.nn.functional.one_hot(ids[0, 1:3], 9).float()[:, :7] * 3
    part = divergence(torch.zeros(2, 7), soft, 2.0)
    assert given.loss({"logits": logits}, labels, num_items_in_batch=8) == pytest.approx(0.25 * float(part) / 8 + 7.5)


def test_a_smaller_model_learns_from_a_classifier(
    run: Any, classifier: Artefact, asked: dict[str, Any], tmp_path: Path
) -> None:
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    student = {**asked, "model_name_or_path": None, "model_type": "llama", "config_overrides": small, "max_length": 32}
    student |= {"tokenizer": classifier.directory, "teacher": classifier.directory, "num_train_epochs": 12.0}
    made = run("finetune", tmp_path / "student", **student, distillation_alpha=1.0)
    ours, theirs = made.manifest.metrics, classifier.manifest.metrics
    assert min(ours["validation"]["accuracy"], theirs["validation"]["accuracy"]) >= 0.7
    assert ours["parameters"]["total"] < theirs["parameters"]["total"] / 2
    assert "teacher" in made.manifest.inputs
    assert len(list(made.directory.glob("*.safetensors"))) == 1


def test_labels_are_matched_by_name(classifier: Artefact, tmp_path: Path) -> None:
    from llmkit.tasks.loading import load_task_model
    from llmkit.training.distillation import load_teacher

    turned = AutoModelForSequenceClassification.from_pretrained(classifier.directory)
    turned.config.id2label, turned.config.label2id = {0: "good", 1: "bad"}, {"good": 0, "bad": 1}
    turned.save_pretrained(tmp_path)
    _, _, tokenizer = load_task_model(str(classifier.directory))
    tokenizer.save_pretrained(tmp_path)
    ids = {"input_ids": torch.arange(4)[None], "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    task = TextClassification(["bad", "good"])
    plain, mapped = (
        load_teacher(settings(teacher=str(place)), task, tokenizer, 32).logits(ids)
        for place in (classifier.directory, tmp_path)
    )
    assert torch.equal(plain, mapped.flip(-1))


@pytest.mark.slow
def test_a_teacher_that_cannot_teach_is_refused(
    run: Any, classifier: Artefact, base_model: Artefact, asked: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="has learned text-generation, and the student learns text-classification"):
        run("finetune", tmp_path / "m", **asked, teacher=base_model.directory)
    rows = [{"text": f"word {number}", "label": "ab"[number % 2]} for number in range(20)]
    (tmp_path / "ab.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match="knows the labels bad, good, and the data has a, b"):
        run("finetune", tmp_path / "m", **{**asked, "train_file": tmp_path / "ab.jsonl"}, teacher=classifier.directory)
    new = {
        **asked,
        "model_name_or_path": None,
        "model_type": "llama",
        "vocab_size": 300,
        "config_overrides": {"num_hidden_layers": 1},
    }
    with pytest.raises(ConfigError, match="has another tokenizer than the student"):
        run("finetune", tmp_path / "m", **new, teacher=classifier.directory)


# A random start


def test_a_random_start_has_the_architecture_and_the_tokenizer_of_the_base_model_and_not_its_weights(
    run: Any, asked: dict[str, Any], base_model: Artefact, tmp_path: Path
) -> None:
    made = run("finetune", tmp_path / "m", **{**asked, "learning_rate": 1e-12, "max_steps": 1}, random_start=True)
    ours, base = load_file(made.directory / "model.safetensors"), load_file(base_model.directory / "model.safetensors")
    assert {name: weight.shape for name, weight in ours.items() if name in base} == {
        name: weight.shape for name, weight in base.items() if name in ours
    }
    assert not any(torch.equal(ours[name], base[name]) for name in base if name in ours and "norm" not in name)
    assert (made.directory / "tokenizer.json").read_bytes() == (base_model.directory / "tokenizer.json").read_bytes()
