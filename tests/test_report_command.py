"""python -m tpmm_jax.report: where the page goes, what is said, exit codes."""

import json
import pathlib
import subprocess
import sys
import webbrowser

import pytest

from tpmm_jax.commands.report import main


@pytest.fixture
def run(tmp_path):
    return begun(tmp_path / "run")


def begun(folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir()
    row = {"kind": "iteration", "iteration": 0, "reward/mean": 0.5}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def test_the_page_lies_in_the_workdir(run, capsys):
    assert main([str(run)]) == 0
    assert capsys.readouterr().out == f"wrote {run}/report.html\n"
    assert (run / "report.html").read_text().startswith("<!doctype html>")


def test_a_comparison_lies_here(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(run), str(begun(tmp_path / "other"))]) == 0
    assert "Comparison of 2 runs" in (tmp_path / "report.html").read_text()


def test_output_names_the_page(run, tmp_path):
    assert main([str(run), "--output", str(tmp_path / "new" / "x.html")]) == 0
    assert (tmp_path / "new" / "x.html").exists()


def test_a_browser_is_opened_on_request_only(run, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or False)
    assert main([str(run)]) == 0 and not opened
    assert main([str(run), "--open", "yes"]) == 0
    assert opened == [(run / "report.html").resolve().as_uri()]
    assert "open " in capsys.readouterr().out


def test_bad_input_is_said_without_a_traceback(run, tmp_path, capsys):
    assert main([str(tmp_path / "absent")]) == 2
    assert "is not a directory" in capsys.readouterr().err
    (run / "metrics.jsonl").write_text("nonsense\n")
    assert main([str(run)]) == 2
    assert "metrics.jsonl, line 1" in capsys.readouterr().err
    (run / "metrics.jsonl").unlink()
    (run / "config.json").write_text("{")
    assert main([str(run)]) == 3
    assert "config.json" in capsys.readouterr().err


def test_it_runs_as_a_module_and_explains_itself():
    command = [sys.executable, "-m", "tpmm_jax.report", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert said.returncode == 0
    assert "examples:" in said.stdout and "--output FILE" in said.stdout
