"""Damage to a run is refused by name; what the message advises mends it."""

import io
import json
import pathlib
import re
import shutil
from collections.abc import Callable

import pytest
import tiny_run
from test_resume import content, digests

from tpmm_jax.commands import repair as repair_command
from tpmm_jax.commands import train as command_line
from tpmm_jax.errors import BadInput, CorruptCheckpoint
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop import workdir as workdir_module
from tpmm_jax.loop.repair import repair

Harm = Callable[[pathlib.Path], object]


def start(workdir: pathlib.Path, **changes: int) -> str:
    out = io.StringIO()
    config = tiny_run.get_config(**changes)
    command_line.run(config, workdir, RunConsole(out, out))
    return out.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("whole") / "run"
    start(workdir)
    return workdir


@pytest.fixture
def run(whole: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(whole, tmp_path / "run"))


def swap_lines(path: pathlib.Path) -> None:
    first, second, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([second, first, *rest]))


def edit(path: pathlib.Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def swapped_pairs(run: pathlib.Path) -> None:
    swap_lines(run / "iterations/001/pairs.jsonl")
    (run / "iterations/001/summary.json").unlink()


def negated_rewards(run: pathlib.Path) -> None:
    edit(run / "iterations/002/rollouts.jsonl", '"rewards": [', '"rewards": [-')
    (run / "iterations/002/pairs.jsonl").unlink()


def edited_answers_of_theta_0(run: pathlib.Path) -> None:
    path = run / "iterations/000/evaluation.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"held_out"', b'"held_out" ', 1))
    (run / "iterations/001/summary.json").unlink()


def lost_line(run: pathlib.Path) -> None:
    path = run / "trajectory/trajectory.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def broken_line(run: pathlib.Path) -> None:
    path = run / "trajectory/trajectory.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"\xff\n", *lines[2:]]))


HARMS: dict[str, tuple[Harm, str]] = {
    "pairs": (swapped_pairs, r"001/pairs\.jsonl, line 1 .*labelling of iteration 1"),
    "rollouts": (negated_rewards, r"002/rollouts\.jsonl, line 1 .*sampling and"),
    "answers": (edited_answers_of_theta_0, r"000/evaluation\.jsonl, line 1 is not"),
    "a lost line": (lost_line, "has no line for step 2, but"),
    "a broken line": (broken_line, r"trajectory\.jsonl: line 2 is not"),
    "model": (
        lambda run: edit(run / "model/config.json", "1e-06", "1e-05"),
        r"model/config\.json, line \d+ is not",
    ),
    "metrics": (
        lambda run: swap_lines(run / "iterations/001/metrics.jsonl"),
        r"001/metrics\.jsonl, line 1 is not",
    ),
    "digests": (
        lambda run: edit(run / "iterations/001/digests.jsonl", "pairs", "peers"),
        r"001/digests\.jsonl, line \d+ is not",
    ),
}


@pytest.mark.parametrize("name", HARMS)
def test_damage_is_refused_and_the_advice_mends_it(
    whole: pathlib.Path,
    run: pathlib.Path,
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    harm, said = HARMS[name]
    harm(run)
    with pytest.raises(CorruptCheckpoint, match=said) as error:
        start(run)
    advised = re.search(r"`tpmm repair ([^`]*)`", str(error.value))
    assert advised and advised[1] == str(run)
    assert repair_command.main([advised[1]]) == 0
    assert "start the run again" in capsys.readouterr().out.replace("\n", " ")
    assert any((run / "damaged").rglob("*.json*"))
    start(run)
    assert content(run) == content(whole)
    assert digests(run) == digests(whole)


def test_what_is_missing_is_named(
    whole: pathlib.Path, run: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "iterations/001/summary.json").unlink()
    cut = (run / "metrics.jsonl").read_bytes()[:-50]
    (run / "metrics.jsonl").write_bytes(cut)
    assert repair_command.main([str(run)]) == 0
    said = "".join(capsys.readouterr().out.split())
    assert "iterations/001/summary.jsonismissing;therunmakesitagain" in said
    assert "metrics.jsonl:writtenagainfromtheiterations'ownfiles" in said
    assert "nothingtodo" not in said
    [kept] = (run / "damaged").rglob("metrics.jsonl")
    assert kept.read_bytes() == cut
    rows = (whole / "metrics.jsonl").read_bytes()
    assert (run / "metrics.jsonl").read_bytes() == rows


def test_what_is_whole_is_left_alone(
    run: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert repair_command.main([str(run)]) == 0
    assert "nothing to do" in capsys.readouterr().out.replace("\n", " ")
    del before[run / "run.lock"]
    assert all(path.read_bytes() == data for path, data in before.items())
    assert not (run / "damaged").exists()


@pytest.mark.parametrize("text", [None, "{"])
def test_a_config_that_no_start_can_read_is_named(
    run: pathlib.Path, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "config.json").unlink()
    if text is not None:
        (run / "config.json").write_text(text)
    assert repair_command.main([str(run)]) in (3, 4)
    assert "config.json: " in capsys.readouterr().err.replace("\n", " ")


def test_an_earlier_iteration_made_again_keeps_all_rows(
    whole: pathlib.Path, run: pathlib.Path
) -> None:
    (run / "iterations/001/summary.json").unlink()
    (run / "iterations/001/pairs.jsonl").unlink()
    (run / "iterations/002/reference.json").unlink()
    (run / "model/tokenizer.json").unlink()
    text = start(run)
    assert "tokenizer.json taken from the source again" in text.replace("\n", " ")
    assert content(run) == content(whole)
    assert (run / "model/tokenizer.json").exists()


def test_policies_and_evaluations_are_given_up(
    whole: pathlib.Path, run: pathlib.Path
) -> None:
    assert repair_command.main([str(run), "--give-up", "2"]) == 0
    assert not (run / "trajectory/2").exists()
    assert not (run / "iterations/002").exists()
    assert b'"iteration": 2' not in (run / "metrics.jsonl").read_bytes()
    # Answers of theta_1 that are to come out otherwise.
    assert repair_command.main([str(run), "--evaluate", "1"]) == 0
    start(run)
    assert content(run) == content(whole) and digests(run) == digests(whole)
    assert repair_command.main([str(run), "--give-up", "0"]) == 2


def test_a_run_of_another_format_is_refused(run: pathlib.Path) -> None:
    for found, said in ((None, r"format 1; .*0\.1\.0 continues it"), (99, "newer")):
        record = json.loads((run / "data.json").read_text())
        record.pop("format", None)
        record |= {} if found is None else {"format": found}
        (run / "data.json").write_text(json.dumps(record))
        (run / "digests.jsonl").unlink(missing_ok=True)
        with pytest.raises(BadInput, match=said):
            start(run)
        assert repair_command.main([str(run)]) == 2


def test_a_field_that_the_run_began_without_keeps_its_behaviour_of_then(
    run: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run / "config.json"
    known = json.loads(path.read_text())
    del known["evaluation"]["max_kl_per_token"]
    path.write_text(json.dumps(known))
    added = {"evaluation.max_kl_per_token": 7.0}
    config = tiny_run.get_config()
    assert workdir_module.as_begun(run, config, {}) == config
    then = workdir_module.as_begun(run, config, added)
    assert then.evaluation.max_kl_per_token == 7.0
    monkeypatch.setattr(workdir_module, "ADDED", added)
    monkeypatch.setattr("tpmm_jax.loop.setup.ADDED", added)
    for _ in range(2):
        start(run)
        now = json.loads(path.read_text())
        assert "max_kl_per_token" not in now["evaluation"]


def test_a_start_that_was_refused_is_nothing_to_repair(tmp_path):
    (tmp_path / "trajectory").mkdir()
    with pytest.raises(BadInput, match="holds no policy yet"):
        repair(tmp_path, print)
