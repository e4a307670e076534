"""tpmm sample: prompts, files, pipes and a terminal; what is wrong is said."""

import io
import json
import os
import pathlib
import pty
import select
import shutil
import subprocess
import sys
import time
import types

import command_runs
import pytest

import tpmm_jax as tpmm
from tpmm_jax.commands import _prompt_file as prompt_file
from tpmm_jax.commands import sample as command
from tpmm_jax.commands._answers import Interrupt, escape_controls
from tpmm_jax.commands._chat import Chat
from tpmm_jax.errors import BadInput, CorruptCheckpoint
from tpmm_jax.log.console import RunConsole
from tpmm_jax.store.files import append_lines

SHORT = ["--max-new-tokens", "12"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(command_runs.model_folder(tmp_path_factory.mktemp("m") / "chat"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("m") / "plain"
    return str(command_runs.model_folder(path, chat=False))


@pytest.fixture(scope="module")
def workdir():
    return command_runs.finished_run()


def tpmm_sample(capsys, *argv):
    code = command.main([*map(str, argv)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, " ".join(err.split())


def refused(capsys, *argv, code=2):
    found, out, err = tpmm_sample(capsys, *argv)
    assert found == code and not out, (found, out, err)
    return err


def test_one_prompt_is_answered_as_generate_does(capsys, folder):
    code, out, err = tpmm_sample(capsys, folder, "--prompt", "a dog", *SHORT)
    want = tpmm.generate(tpmm.load(folder), ["a dog"], max_new_tokens=12, chat=True)
    assert code == 0 and out == want[0][0] + "\n"
    assert "chat template (--no-chat for the text alone)" in err


def test_every_sample_is_the_one_of_generate(capsys, plain):
    _code, out, err = tpmm_sample(
        capsys, plain, "--prompt", "a dog", *SHORT, "--num-samples", 2, "--seed", 5
    )
    want = tpmm.generate(
        tpmm.load(plain), ["a dog"], max_new_tokens=12, num_samples=2, seed=5
    )
    assert out == f"[1 of 2]\n{want[0][0]}\n\n[2 of 2]\n{want[0][1]}\n\n"
    assert "plain text (the model has no chat template)" in err
    assert "cut at 12 tokens" in err


def test_no_chat_and_system_change_the_prompt(capsys, folder):
    model = tpmm.load(folder)
    _, out, _ = tpmm_sample(capsys, folder, "--prompt", "a dog", "--no-chat", *SHORT)
    assert out == tpmm.generate(model, ["a dog"], max_new_tokens=12)[0][0] + "\n"
    _, out, _ = tpmm_sample(
        capsys, folder, "--prompt", "a dog", "--system", "be kind", *SHORT
    )
    turns = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "a dog"},
    ]
    want = tpmm.generate(model, [turns], max_new_tokens=12, chat=True)
    assert out == want[0][0] + "\n"


def test_a_workdir_is_its_newest_policy(capsys, workdir):
    code, out, err = tpmm_sample(capsys, workdir, "--prompt", "a", *SHORT)
    assert code == 0 and "trajectory@2 (what the run ships)" in err
    _, last, _ = tpmm_sample(capsys, f"{workdir}/trajectory@2", "--prompt", "a", *SHORT)
    _, first, _ = tpmm_sample(
        capsys, f"{workdir}/trajectory@0", "--prompt", "a", *SHORT
    )
    assert out == last != first


def prompts_file(tmp_path, count=7):
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"number {i}"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_is_answered_and_an_interrupted_output_continued(
    capsys, folder, tmp_path, monkeypatch
):
    prompts, whole = prompts_file(tmp_path), tmp_path / "whole.jsonl"
    argv = [folder, "--prompts", prompts, "--num-samples", 2, "--batch-size", 2, *SHORT]
    code, out, err = tpmm_sample(capsys, *argv, "--output", whole)
    assert code == 0 and not out
    rows = [json.loads(line) for line in whole.read_text().splitlines()]
    texts = [f"number {i}" for i in range(7)]
    assert [row["prompt"] for row in rows] == texts
    want = tpmm.generate(
        tpmm.load(folder), texts, max_new_tokens=12, chat=True, num_samples=2
    )
    assert [row["responses"] for row in rows] == want

    # Cut inside the second batch, in the middle of a line.
    half = tmp_path / "half.jsonl"
    lines = whole.read_text().splitlines(keepends=True)
    half.write_text("".join(lines[:3]) + lines[3][:9])
    mark = pathlib.Path(f"{whole}.source")
    pathlib.Path(f"{half}.source").write_text(mark.read_text())
    drawn = []
    monkeypatch.setattr(
        prompt_file,
        "append_lines",
        lambda path, lines: (drawn.extend(lines), append_lines(path, lines)),
    )
    code, _, err = tpmm_sample(capsys, *argv, "--output", half)
    assert code == 0 and "holds 2 of 7 rows" in err and len(drawn) == 5
    assert half.read_bytes() == whole.read_bytes()
    code, _, err = tpmm_sample(capsys, *argv, "--output", half)
    assert code == 0 and "is complete: 7 rows" in err
    err = refused(capsys, *argv, "--output", half, "--seed", 1)
    assert "seed: was 0, is now 1" in err and "another --output" in err


def test_a_file_without_output_goes_to_stdout(capsys, folder, tmp_path):
    _code, out, _ = tpmm_sample(
        capsys, folder, "--prompts", prompts_file(tmp_path, 3), *SHORT
    )
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == [
        "number 0", "number 1", "number 2",
    ]  # fmt: skip


def test_piped_lines_are_prompts(capsys, plain, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\n two \n"))
    _code, out, _ = tpmm_sample(capsys, plain, *SHORT)
    want = tpmm.generate(tpmm.load(plain), ["one", "two"], max_new_tokens=12)
    assert out == f"> one\n{want[0][0]}\n\n> two\n{want[1][0]}\n\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert "standard input is empty" in refused(capsys, plain)


WRONG = {
    "missing model": (["./nowhere", "--prompt", "a"], "nowhere: no such directory"),
    "wrong step": (["RUN/trajectory@9", "--prompt", "a"], "holds the steps [0, 1, 2]"),
    "missing file": (["CHAT", "--prompts", "no.jsonl"], "no.jsonl: no such file"),
    "empty prompt": (["CHAT", "--prompt", " "], "--prompt is empty"),
    "both": (["CHAT", "--prompt", "a", "--prompts", "b"], "give one of them"),
    "temperature": (["CHAT", "--prompt", "a", "--temperature", "-1"], "is -1.0"),
    "samples": (["CHAT", "--prompt", "a", "--num-samples", "0"], "--num-samples is 0"),
    "dtype": (["CHAT", "--prompt", "a", "--dtype", "float16"], "dtype is float16"),
    "no room": (
        ["CHAT", "--prompt", "a", "--max-new-tokens", "160"],
        "160; the model has 160 positions",
    ),
    "too long": (["CHAT", "--prompt", "a" * 200, *SHORT], "wanted 1 to 148"),
    "no template": (["PLAIN", "--prompt", "a", "--chat"], "has none"),
    "system": (["PLAIN", "--prompt", "a", "--system", "b"], "--system needs a chat"),
    "system off": (["CHAT", "--prompt", "a", "--system", "b", "--no-chat"], "--no-c"),
    "output": (["CHAT", "--prompt", "a", "--output", "o"], "--output is for many"),
    "revision": (["CHAT", "--prompt", "a", "--revision", "v1"], "is for a hub id"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_named(capsys, folder, plain, workdir, name):
    argv, wanted = WRONG[name]
    places = {"CHAT": folder, "PLAIN": plain}
    argv = [places.get(a, a).replace("RUN", str(workdir)) for a in argv]
    assert wanted in refused(capsys, *argv)


def test_no_tokenizer_no_prompts_and_a_foreign_output_are_named(
    capsys, folder, fixtures, tmp_path
):
    text = refused(capsys, fixtures / "llama", "--prompt", "a")
    assert "has no tokenizer" in text and "token ids" in text
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert "empty.jsonl" in refused(capsys, folder, "--prompts", empty)
    foreign = tmp_path / "notes.jsonl"
    foreign.write_text("mine\n")
    argv = [folder, "--prompts", prompts_file(tmp_path), "--output", foreign]
    assert "was not written by this command" in refused(capsys, *argv)
    assert foreign.read_text() == "mine\n"
    assert "is a folder" in refused(capsys, *argv[:-1], tmp_path)


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        ([], "some_prompts:make returned no prompts"),
        (["a", 3], "some_prompts:make: prompt 1: field 'prompt' is a number"),
    ],
)
def test_a_functions_wrong_prompts_are_named(capsys, folder, monkeypatch, made, wanted):
    module = types.ModuleType("some_prompts")
    module.make = lambda: made
    monkeypatch.setitem(sys.modules, "some_prompts", module)
    assert wanted in refused(capsys, folder, "--prompts", "some_prompts:make")


def test_token_ids_need_no_tokenizer(capsys, fixtures, tmp_path):
    path = tmp_path / "ids.jsonl"
    path.write_text('{"prompt_ids": [3, 4]}\n{"prompt_ids": [5]}\n')
    code, out, err = tpmm_sample(
        capsys, fixtures / "llama", "--prompts", path, "--max-new-tokens", 3
    )
    assert code == 0 and "token ids, as they are" in err
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == [[3, 4], [5]]


def test_a_typo_of_an_option_has_a_nearest(capsys, folder):
    with pytest.raises(SystemExit) as ended:
        command.main([folder, "--temprature", "1"])
    assert ended.value.code == 2
    assert "did you mean --temperature?" in capsys.readouterr().err


class Typed:
    """input() that gives lines, then the end of input."""

    def __init__(self, *lines):
        self.lines = list(lines)

    def __call__(self, prompt=""):
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if line is KeyboardInterrupt:
            raise line
        return line


def chat_with(monkeypatch, folder, *lines, **changes):
    """(Chat, what was answered, what was remarked)."""
    model = tpmm.load(folder)
    args = command.parse_args([folder, *SHORT])
    settings = command.Settings(
        sampling=command.check_args(args), seed=0, chat=True, **changes
    )
    out, remarks = io.StringIO(), io.StringIO()
    console = RunConsole(file=remarks, errors=remarks)
    chat = Chat(model, settings, console, out)
    monkeypatch.setattr("builtins.input", Typed(*lines))
    chat.run()
    return chat, out.getvalue(), " ".join(remarks.getvalue().split())


def test_a_conversation_goes_on_until_reset(monkeypatch, folder):
    monkeypatch.setattr(sys, "stdin", io.StringIO("x"))
    chat, out, _ = chat_with(monkeypatch, folder, "hello", "again", "")
    assert [turn["role"] for turn in chat.turns] == ["user", "assistant"] * 2
    model = tpmm.load(folder)
    second = "".join(
        tpmm.stream(model, chat.turns[:3], max_new_tokens=12, chat=True, number=1)
    )
    assert chat.turns[3]["content"] == second and second in out
    chat, _, said = chat_with(monkeypatch, folder, "hello", "/reset", "again", "/quit")
    assert next(turn["content"] for turn in chat.turns) == "again"
    assert "a new conversation" in said


def test_commands_are_never_sent_and_too_long_a_turn_is_left_out(monkeypatch, folder):
    monkeypatch.setattr(sys, "stdin", io.StringIO("x"))
    chat, _, said = chat_with(
        monkeypatch, folder, KeyboardInterrupt, "/wrong", "/help", "hi", "a" * 150
    )
    assert "no command /wrong" in said and "/reset, /quit, /help" in said
    assert "to end: /quit or Ctrl-D" in said
    assert "/reset begins a new conversation" in said and len(chat.turns) == 2


def test_the_system_message_is_in_every_turn(monkeypatch, folder):
    monkeypatch.setattr(sys, "stdin", io.StringIO("x"))
    chat, _, _ = chat_with(monkeypatch, folder, "hello", system="be kind")
    model = tpmm.load(folder)
    turns = [{"role": "system", "content": "be kind"}, chat.turns[0]]
    want = "".join(tpmm.stream(model, turns, max_new_tokens=12, chat=True))
    assert chat.turns[1]["content"] == want


def test_the_first_interrupt_is_noted_and_the_second_raised():
    interrupt = Interrupt()
    with interrupt.watching():
        os.kill(os.getpid(), 2)
        assert interrupt.raised
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), 2)
            time.sleep(1)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_control_codes_of_an_answer_do_not_reach_the_terminal():
    assert escape_controls("a\x1b[2Jb\n", Terminal()) == "a\\x1b[2Jb\n"
    assert escape_controls("a\x1b[2Jb\n", io.StringIO()) == "a\x1b[2Jb\n"
    assert escape_controls("é😀\u200d", Terminal()) == "é😀\u200d"


@pytest.mark.slow
def test_on_a_terminal(folder):
    """In a process of its own: typed lines, Ctrl-C in an answer, Ctrl-D."""
    pid, fd = pty.fork()
    if pid == 0:
        os.environ["JAX_PLATFORMS"] = "cpu"
        argv = [sys.executable, "-m", "tpmm_jax", "sample", folder]
        os.execv(sys.executable, [*argv, "--max-new-tokens", "120"])
    seen = b""

    def wait_for(mark):
        nonlocal seen
        start, until = len(seen), time.time() + 120
        while mark not in seen[start:] and time.time() < until:
            if select.select([fd], [], [], 0.2)[0]:
                seen += os.read(fd, 4096)
        assert mark in seen[start:], seen

    wait_for(b"> ")
    os.write(fd, b"hello\n")
    wait_for(b"\n> ")
    os.write(fd, b"more\n")
    wait_for(b"more\r\n")
    os.write(fd, b"\x03")
    wait_for(b"\n> ")
    os.write(fd, b"\x04")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, seen
    assert b"Traceback" not in seen


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error(folder):
    argv = [sys.executable, "-m", "tpmm_jax", "sample", folder, "--prompt", "a"]
    run = subprocess.Popen(
        [*argv, "--num-samples", "3", *SHORT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    run.stdout.close()
    assert "Traceback" not in run.stderr.read().decode()
    assert run.wait() == 0


def test_a_damaged_policy_is_named_and_never_passed_over(workdir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    newest = max(int(p.name) for p in (run / "trajectory").iterdir() if p.is_dir())
    weights = max(
        (p for p in (run / f"trajectory/{newest}/policy").rglob("*") if p.is_file()),
        key=lambda p: p.stat().st_size,
    )
    weights.write_bytes(weights.read_bytes()[:-7])
    for name in (str(run), f"{run}/trajectory@{newest}"):
        with pytest.raises(CorruptCheckpoint, match=f"trajectory@{newest}.*is damaged"):
            tpmm.load(name)
    assert tpmm.load(f"{run}/trajectory@0").params


def test_bytes_that_are_no_text_are_refused(plain):
    model = tpmm.load(plain)
    with pytest.raises(BadInput, match="prompt 0 is not UTF-8"):
        list(tpmm.stream(model, "Tom\udce9 had"))
