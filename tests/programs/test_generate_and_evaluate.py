"""The commands generate and evaluate, end to end."""

import fcntl
import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import pytest

import tinyllm.evaluate
import tinyllm.generate
from tests.support.training_runs import logged
from tinyllm.inference.sampling import Sampling
from tinyllm.nn.kernel_build import KernelsUnavailable

Answer = tuple[int, str, str]
PROGRAMS = {"generate": tinyllm.generate.main, "evaluate": tinyllm.evaluate.main}


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs a command in this process; returns exit code, standard output and standard error."""

    def run(program: str, *arguments: str) -> Answer:
        capsys.readouterr()
        with (
            mock.patch.object(sys, "argv", [f"tinyllm-{program}", *arguments]),
            mock.patch.dict(os.environ),
            pytest.raises(SystemExit) as end,
        ):
            PROGRAMS[program]()
        shown = capsys.readouterr()
        return int(end.value.code or 0), shown.out, shown.err

    return run


def test_prompt_and_text_go_to_stdout_and_the_rest_to_stderr(cli: Callable[..., Answer], tiny_run: Path) -> None:
    code, out, err = cli("generate", f"run={tiny_run}", "prompt=the h", "max_new_tokens=30")
    assert code == 0
    assert out.startswith("the h")
    assert len(out) == len("the h") + 30 + (not out.endswith("\n\n"))
    assert "30 tokens in" in err


def test_text_does_not_depend_on_cache_json_or_n_samples(cli: Callable[..., Answer], tiny_run: Path) -> None:
    asked = (f"run={tiny_run}", "prompt= of the ", "max_new_tokens=50", "seed=3")
    texts = [
        cli("generate", *asked)[1],
        cli("generate", *asked, "kv_cache=false")[1],
        cli("generate", *asked, "n_samples=3")[1],
    ]
    answer = json.loads(cli("generate", *asked, "--json")[1])
    assert texts[0] == texts[1]
    assert texts[2].startswith(texts[0])
    assert texts[0].rstrip("\n") == (answer["prompt"] + answer["samples"][0]).rstrip("\n")
    assert cli("generate", *asked, "seed=4")[1] != texts[0]


@pytest.mark.slow
def test_int8_weights_and_their_loss(cli: Callable[..., Answer], tiny_run: Path) -> None:
    exact, rounded = (
        json.loads(cli("evaluate", f"run={tiny_run}", f"quantize={quantize}", "--json")[1])
        for quantize in ("null", "int8")
    )
    assert (exact["quantize"], rounded["quantize"]) == (None, "int8")
    assert 0 < abs(rounded["val/loss"] / exact["val/loss"] - 1) < 0.005
    asked = (f"run={tiny_run}", "prompt=the h", "max_new_tokens=20", "quantize=int8")
    code, out, err = cli("generate", *asked)
    assert code == 0 and out.startswith("the h")
    tokens = f"{exact['tokens']:,}"  # the whole split is smaller than the sample
    losses = f"val/loss {rounded['val/loss']:.4f} on {tokens} held-out tokens, {exact['val/loss']:.4f} with"
    assert losses in err
    with mock.patch.dict(os.environ, {"TINYLLM_CACHE": str(tiny_run.parent / "empty")}):
        assert "evaluate run=" in cli("generate", *asked)[2]


def test_damaged_weights_are_not_rounded_to_int8(cli: Callable[..., Answer], tiny_run: Path) -> None:
    with mock.patch("tinyllm.programs.quantization.first_not_finite", return_value="blocks.0.attn.qkv.weight"):
        for program in ("generate", "evaluate"):
            code, out, err = cli(program, f"run={tiny_run}", "quantize=int8")
            assert (code, out) == (2, "") and "not finite" in err and "blocks.0" in err


def test_decoding_without_our_kernels_gives_the_same_greedy_text(cli: Callable[..., Answer], tiny_run: Path) -> None:
    asked = (f"run={tiny_run}", "prompt=the h", "max_new_tokens=50", "temperature=0")
    assert cli("generate", *asked)[1] == cli("generate", *asked, "decode_kernels=false")[1]
    with mock.patch("tinyllm.programs.decoding_kernels.decode_kernels", side_effect=KernelsUnavailable("no g++")):
        code, _, err = cli("generate", *asked)
        assert code == 0 and "torch's operations" in err and "no g++" in err
        assert "no g++" not in cli("generate", *asked, "decode_kernels=false")[2]


@pytest.mark.slow
def test_greedy_text_past_the_context_does_not_depend_on_the_cache(cli: Callable[..., Answer], tiny_run: Path) -> None:
    for prompt in ("", "t", "the have from or", "it was for the of and in is that it"):
        asked = (f"run={tiny_run}", f"prompt={prompt}", "max_new_tokens=40", "temperature=0")
        assert cli("generate", *asked)[:2] == cli("generate", *asked, "kv_cache=false")[:2]


@pytest.mark.slow
def test_prompts_of_a_file_get_the_texts_they_get_alone(
    cli: Callable[..., Answer], tiny_run: Path, tmp_path: Path
) -> None:
    prompts = ["the have from or and of", "t", "it was"]
    file = tmp_path / "two, prompts.txt"
    file.write_text("\n\n".join(prompts) + "\n", encoding="utf-8")
    asked = (f"run={tiny_run}", "max_new_tokens=30", "n_samples=2", "stop=\n")
    answers = json.loads(cli("generate", *asked, f"prompts={file}", "--json")[1])
    alone = [json.loads(cli("generate", *asked, f"prompt={prompt}", "--json")[1]) for prompt in prompts]
    assert answers == alone
    _, out, err = cli("generate", *asked, f"prompts={file}")
    assert [line for line in out.splitlines() if line] == [
        answer["prompt"] + text for answer in alone for text in answer["samples"]
    ]
    assert [line for line in err.splitlines() if line.startswith("prompt")] == [
        f"prompt {i} of 3, sample {j} of 2" for i in (1, 2, 3) for j in (1, 2)
    ]
    file.write_text("the\nnaïve\n", encoding="utf-8")
    assert "prompts=naïve" in cli("generate", *asked, f"prompts={file}")[2]


def test_stop_string_may_be_a_line_end(cli: Callable[..., Answer], tiny_run: Path) -> None:
    whole = cli("generate", f"run={tiny_run}", "prompt=a", "max_new_tokens=200")[1]
    assert "\n" in whole[:-1]
    stopped = cli("generate", f"run={tiny_run}", "prompt=a", "max_new_tokens=200", "stop=\n")[1]
    assert stopped == whole[: whole.index("\n") + 1]


def test_interactive_reads_prompts_from_a_pipe(
    cli: Callable[..., Answer], tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("the\né\nof"))
    code, out, err = cli("generate", f"run={tiny_run}", "interactive=true", "max_new_tokens=5", "stop=\n")
    assert code == 0
    assert [line[:3] for line in out.splitlines()] == ["the", "of" + out.splitlines()[1][2]]
    assert "error: the character 'é' (U+00E9)" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("prompt=naïve",), "'ï' (U+00EF)"),
        (("prompt=naïve",), "prompt=naïve"),
        (("promt=a",), "did you mean prompt or prompts?"),
        (("prompt=a", "prompts=a.txt"), "prompt=a"),
        (("interactive=true", "prompts=a.txt"), "interactive=true"),
        (("prompts=nowhere.txt",), "prompts=nowhere.txt"),
        (("prompts=/dev/null",), "prompts=/dev/null"),
        (("+foo=1",), "foo=1"),
        (("max_new_tokens=0",), "max_new_tokens=0"),
        (("max_new_tokens=many",), "max_new_tokens=many"),
        (("temperature=-1",), "temperature=-1"),
        (("top_p=1.5",), "top_p=1.5"),
        (("temperature=0", "top_k=5"), "top_k=5"),
        (("checkpoint=step-7",), "one of step-"),
        (("weights=ema",), "no averaged weights"),
        (("weights=moving",), "one of auto, raw, ema"),
        (("precision=int8",), "one of auto, fp32"),
        (("device=tpu",), "one of auto, cpu"),
        (("interactive=true", "--json"), "interactive=true"),
    ],
)
@pytest.mark.every(4)
def test_mistakes_are_one_line(
    cli: Callable[..., Answer], tiny_run: Path, arguments: tuple[str, ...], expected: str
) -> None:
    code, out, err = cli("generate", f"run={tiny_run}", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert expected in err


@pytest.mark.parametrize("program", PROGRAMS)
def test_missing_run_says_how_to_give_one(
    cli: Callable[..., Answer], tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = cli(program)
    assert code == 2
    assert "run=<directory>" in err
    for name, age in (("old", 100), ("new", 0)):
        folder = tmp_path / "outputs" / "2026-01-31" / name / "checkpoints"
        (folder / "step-000001").mkdir(parents=True)
        os.utime(folder, (time.time() - age,) * 2)
    (tmp_path / "outputs" / "2026-01-31" / "empty" / "checkpoints").mkdir(parents=True)
    assert "run=outputs/2026-01-31/new uses the newest" in cli(program)[2]


def test_evaluate_gives_the_loss_of_the_training_log(cli: Callable[..., Answer], tiny_run: Path) -> None:
    code, out, err = cli("evaluate", f"run={tiny_run}", "checkpoint=last", "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    for metric in ("val/loss", "val/ppl", "val/bpb"):
        assert result[metric] == logged(tiny_run, metric)[-1]
    assert result["step"] == 20
    assert (result["seq_len"], result["stride"], result["precision"]) == (16, 16, "fp32")


def test_evaluate_prints_a_table_for_the_training_split_with_a_stride(
    cli: Callable[..., Answer], tiny_run: Path
) -> None:
    code, out, _ = cli("evaluate", f"run={tiny_run}", "split=train", "seq_len=8", "stride=2", "batch_size=128")
    assert code == 0
    table = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert float(table["train/loss"]) > 0
    assert table["window"] == "8, stride 2"
    assert not any(ord(char) < 32 for char in out.replace("\n", ""))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("seq_len=17",), "seq_len=17"),
        (("stride=17",), "stride=17"),
        (("seq_len=8", "stride=9"), "at most 8"),
        (("split=test",), "use val or train"),
        (("stride=0",), "stride=0"),
    ],
)
def test_windows_that_do_not_fit_are_refused(
    cli: Callable[..., Answer], tiny_run: Path, arguments: tuple[str, ...], expected: str
) -> None:
    code, out, err = cli("evaluate", f"run={tiny_run}", *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert expected in err


def test_changed_data_is_refused(cli: Callable[..., Answer], tiny_run: Path, tmp_path: Path) -> None:
    text = tiny_run.parent / "words.txt"
    before = text.read_text(encoding="utf-8")
    try:
        text.write_text(before + " one more", encoding="utf-8")
        code, _, err = cli("evaluate", f"run={tiny_run}")
    finally:
        text.write_text(before, encoding="utf-8")
    assert code == 2
    assert "differs from the one the run was trained with" in err


def test_missing_data_is_refused(
    cli: Callable[..., Answer], tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tiny_run.parent / "words.txt"
    away = text.rename(tmp_path / "away.txt")
    try:
        code, _, err = cli("evaluate", f"run={tiny_run}")
    finally:
        away.rename(text)
    assert (code, len(err.splitlines())) == (2, 1)
    assert f"dataset.path={text}" in err
    assert "the run's saved settings" in err


def test_trainer_sampling_settings_equal_those_of_generate() -> None:
    cfg = tinyllm.compose(program="generate")
    for name, default in asdict(Sampling()).items():
        assert cfg[name] == default, name


def test_damaged_checkpoint_is_named_and_the_previous_one_used(
    cli: Callable[..., Answer], tiny_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    newest = max((run / "checkpoints").glob("step-*"))
    (newest / "model.safetensors").write_bytes(b"not a model")
    for program in PROGRAMS:
        code, out, err = cli(program, f"run={run}", "checkpoint=last")
        assert code == 0
        assert out
        assert f"checkpoint damaged ({newest}" in err


def start(*arguments: str, first: Callable[[], object] = int, **keywords: object) -> subprocess.Popen[bytes]:
    """Start the command as a process that calls ``first`` before it runs."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what a shell starts in the background is deaf to Ctrl-C
        first()

    command = [sys.executable, "-m", "tinyllm.generate", *arguments]
    return subprocess.Popen(command, preexec_fn=prepare, **keywords)  # type: ignore[call-overload]


@pytest.mark.slow
def test_closed_stdout_is_not_an_error(tiny_run: Path) -> None:
    with start(f"run={tiny_run}", "max_new_tokens=100000", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(5)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.slow
def test_ctrl_c_ends_the_line_and_exits_with_130(tiny_run: Path) -> None:
    with start(f"run={tiny_run}", "max_new_tokens=100000", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(5)
        process.send_signal(signal.SIGINT)
        assert process.stdout.read().endswith(b"\n")
        assert process.stderr.read() == b"interrupted\n"
    assert process.returncode == 130


@pytest.mark.slow
def test_conversation_in_a_terminal(tiny_run: Path) -> None:
    ours, theirs = pty.openpty()
    with start(
        f"run={tiny_run}",
        "interactive=true",
        "max_new_tokens=100000",
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "dumb"},
        start_new_session=True,
        first=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),  # so that Ctrl-C reaches it
    ) as process:
        os.close(theirs)
        screen = Screen(ours)
        try:
            screen.wait_for("Ctrl-D the program.", "> ")
            os.write(ours, b"the\n")
            screen.wait_for("the", "\n", "the")  # as typed, then before its text
            os.write(ours, b"\x03")
            screen.wait_for("stopped", "> ")
            os.write(ours, b"\x04")
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
            os.close(ours)


class Screen:
    """What a program writes to a terminal, of which ``handle`` is the other end."""

    def __init__(self, handle: int) -> None:
        self.handle, self.unseen = handle, ""

    def wait_for(self, *texts: str) -> None:
        """Read on until these texts have come, one after the other."""
        for text in texts:
            while text not in self.unseen:
                assert select.select([self.handle], [], [], 60)[0], f"{text!r} did not come: {self.unseen!r}"
                self.unseen += os.read(self.handle, 1024).decode()
            self.unseen = self.unseen.partition(text)[2]
