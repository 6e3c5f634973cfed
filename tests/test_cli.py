"""The `llmkit` command: quick to answer, exit codes, and errors that a person can read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmkit import __version__, cli
from llmkit.errors import ConfigError, DataError, LLMKitError, StageStopped
from llmkit.stages import STAGES

HEAVY = {"torch", "transformers", "pyarrow", "numpy", "datasets", "tokenizers", "accelerate", "sklearn", "scipy", "jinja2"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def llmkit(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "llmkit", *words], capture_output=True, text=True, check=False, **options)


def modules_after(*words: str) -> set[str]:
    """The top-level modules that a command has imported when it ends, in a process of its own."""
    program = (
        "import json, sys\n"
        "from llmkit import cli\n"
        "try:\n    cli.main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print('\\n' + json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["status"],
        ["pretrain", "--learning_rat", "1"],
        ["finetune", "--evaluation_strategy", "steps"],
        ["run", "sentiment", "--set", "finetune.learning_rat=1"],
        ["run", "sentimnt"],
        ["trace", "nowhere"],
        ["replay", "--help"],
        ["verify", "--help"],
        ["predict", "--help"],
        ["compare", "--help"],
        ["predict", "--input", "a.xlsx"],
        *([name, "--help"] for name in STAGES),
    ],
    ids=" ".join,
)
def test_what_needs_nothing_heavy_imports_nothing_heavy(words: list[str]) -> None:
    assert modules_after(*words) & HEAVY == set()


def test_help_names_every_command_stage_and_shipped_file(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"], ["help"]):
        assert cli.main(words) == 0
        out = capsys.readouterr().out
        for word in (
            "run",
            "status",
            "trace",
            "replay",
            "verify",
            "predict",
            "compare",
            *STAGES,
            "sentiment",
            "pretrain/quickstart",
            "ddp",
        ):
            assert f" {word}" in out
        assert max(map(len, out.splitlines())) < 130


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"llmkit {__version__}\n"


@pytest.mark.parametrize("command", ["run", "status", "trace", "replay", "verify", "predict", "compare", *STAGES])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = cli.main([command, "--help"])
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    captured = capsys.readouterr()
    assert code == 0
    assert captured.out.startswith(f"usage: llmkit {command}")
    assert captured.err == ""


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["pretrian"], "no command 'pretrian'; did you mean 'pretrain'?"),
        (["xyzzy"], "no command 'xyzzy'; see `llmkit --help`"),
        (["--hlep"], "no command '--hlep'"),
        (["pretrain", "--learning_rat", "1"], "unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        (["pretrain", "--warmup_ratio", "0.1"], "'warmup_ratio' is no setting: write `warmup_steps`"),
        (["pretrain", "--output_dri", "x"], "unknown key 'output_dri'; did you mean 'output_dir'?"),
        (["pretrain", "--output_dir"], "--output_dir needs a value"),
        (["pretrain", "--config", "quikstart"], "'quikstart' is neither a file nor one of llmkit's recipes"),
        (["evaluate", "--dataset_name", "llmkit/reviews"], "--model_name_or_path is missing"),
        (["predict", "--model", "m", "--inptu", "a.csv"], "unknown key 'inptu'; did you mean 'input'?"),
        (["predict", "--model", "m", "--input", "a.xlsx"], "input: 'a.xlsx' does not end in one of .csv"),
        (["predict", "--model", "./m", "--input", "a.csv"], "a.csv cannot be read: No such file or directory"),
        (
            ["predict", "--model", "m", "--input", "-", "--output_dir", "x"],
            "'output_dir' is no setting: write `output`, a file",
        ),
        (["tokenizer", "--corpus", "nowhere", "--vocab_size", "many"], "vocab_size: 'many' is not a whole number"),
        (["run", "sentimnt"], "did you mean 'sentiment'?"),
        (
            ["run", "sentiment", "--set", "finetune.learning_rat=1"],
            "unknown key 'learning_rat'; did you mean 'learning_rate'?",
        ),
        (["run", "sentiment", "--set", "fintune.seed=1"], "there is no stage 'fintune'; did you mean 'finetune'?"),
        (["run", "sentiment", "--from", "fintune"], "has no stage 'fintune'; did you mean 'finetune'?"),
        (["run", "sentiment", "--dryrun"], "unrecognized arguments: --dryrun"),
        (["run"], "the following arguments are required: pipeline"),
        (["trace", "nowhere"], "nowhere does not exist"),
        (["preprocess", "--train_file", "nowhere.txt"], "train_file: 'nowhere.txt' is no file"),
    ],
)
def test_a_mistake_is_answered_on_stderr_with_code_2_and_no_traceback(
    words: list[str], answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = cli.main(words)
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    captured = capsys.readouterr()
    assert code == 2
    assert answer in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert list(Path().iterdir()) == [], "a mistake in the command leaves nothing behind"


def test_the_exit_code_reaches_the_shell() -> None:
    done = llmkit("pretrain", "--learning_rat", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("llmkit: 1 problem in the settings:\n  - command line: unknown key 'learning_rat'")
    assert len(done.stderr.splitlines()) == 2
    assert llmkit("--version").returncode == 0


def test_all_problems_of_a_command_come_in_one_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("learning_rte: 1\nseed: x\n")
    assert cli.main(["pretrain", "--config=mine.yaml", "--block_siz", "3", "--no_cuda"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("llmkit: 4 problems in the settings:\n")
    for place in ("mine.yaml:1: ", "mine.yaml:2: ", "command line: unknown key 'block_siz'", "'no_cuda' is no setting"):
        assert place in err


def test_options_may_be_written_with_dashes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("A text that is long enough to be one.\n" * 5)
    assert cli.main(["preprocess", "--train-file", "a.txt", "--output-dir", "out"]) == 0
    assert (tmp_path / "out/manifest.json").is_file()
    assert capsys.readouterr().out.splitlines()[-1] == "next: llmkit tokenizer --corpus out"


def raising(failure: BaseException) -> Any:
    def command() -> int:
        raise failure

    return command


@pytest.mark.parametrize("failure", [LLMKitError("wrong"), DataError("wrong"), ConfigError(["wrong"])])
def test_an_error_of_the_user_ends_with_2(failure: LLMKitError, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.guarded(raising(failure)) == 2
    assert capsys.readouterr().err == f"llmkit: {failure}\n"


def test_an_interrupt_ends_with_130_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.guarded(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "llmkit: interrupted; the same command goes on where this one stopped\n"


def test_an_error_of_llmkit_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        cli.guarded(raising(ZeroDivisionError()))


@pytest.mark.parametrize(
    ("failure", "code", "said"),
    [(LLMKitError("only here"), 2, "llmkit: only here\n"), (StageStopped(signal.SIGTERM, "stopped"), 143, "")],
)
def test_a_rank_beside_the_first_tells_only_what_the_first_does_not(
    failure: LLMKitError, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stop is agreed by all ranks. Of another error, the first rank's launcher would have ended this one meanwhile."""
    monkeypatch.setattr(cli, "_MAIN_SPEAKS", 0.01)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.guarded(raising(failure)) == code
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_seen_enough_causes_no_error(unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "llmkit", "--help"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_in_a_real_process_ends_with_130() -> None:
    program = (
        "import signal, sys, time\nfrom llmkit import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell turns it off for what it runs with `&`
        "def wait():\n    print('waiting', flush=True)\n    for _ in range(600):\n        time.sleep(0.05)\n    return 0\n"
        "sys.exit(cli.guarded(wait))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
