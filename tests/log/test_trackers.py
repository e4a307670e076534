"""Weights & Biases and MLflow get each row once, over any number of starts."""

import dataclasses
import json
import pathlib
import struct
import time

import pytest

from tpmm_jax.config import Config, ModelSource, flatten
from tpmm_jax.data.config import DataConfig
from tpmm_jax.errors import BadInput
from tpmm_jax.log import trackers
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.trackers import CLIENTS, check_trackers, open_log
from tpmm_jax.steps import TrainConfig

CONFIG = Config(
    iterations=2,
    model=ModelSource(source="my-model"),
    data=DataConfig(prompts="prompts.jsonl"),
    train=TrainConfig(learning_rate=1e-5),
)


def log_run(folder, name, rows, *, iteration=1, drop=False):
    console = RunConsole()
    config = dataclasses.replace(CONFIG, report_to=name)
    with open_log(folder, config, console) as log:
        if drop:
            log.rewind(iteration, lambda row: row.get("step", 0) <= 1)
        for step in rows:
            values = {"loss": 1 / step, "rewards/margins": float(step), "note": "x"}
            log.log("train", iteration=iteration, step=step, values=values)
            log.log_timing(
                "train", iteration=iteration, step=step, values={"seconds": 0.1}
            )
        if iteration == 2:
            log.log("iteration", iteration=2, step=None, values={"kl": float("inf")})


@pytest.fixture
def mlflow_client(tmp_path, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return mlflow.MlflowClient(f"file:{tmp_path}/mlruns")


def test_mlflow_holds_each_row_once(tmp_path, mlflow_client, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "report.html").write_text("<html>")
    log_run(folder, "mlflow", [1, 2, 3])
    # Continued: the last two steps are done again.
    log_run(folder, "mlflow", [2, 3, 4], drop=True)
    log_run(folder, ["mlflow"], [1, 2], iteration=2)
    record = json.loads((folder / "tracking.json").read_text())["mlflow"]
    run = mlflow_client.get_run(record["run"])
    assert mlflow_client.get_experiment(run.info.experiment_id).name == "tpmm_jax"
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    assert run.data.params["train.learning_rate"] == "1e-05"
    assert set(run.data.params) == set(flatten(CONFIG))

    def history(name):
        found = mlflow_client.get_metric_history(record["run"], name)
        return [(point.step, point.value) for point in found]

    losses = [1, 1 / 2, 1 / 3, 1 / 4, 1, 1 / 2]
    assert history("train/loss") == [(k + 1, x) for k, x in enumerate(losses)]
    assert [step for step, _ in history("timing/train/seconds")] == [1, 2, 3, 4, 5, 6]
    assert history("iteration/kl") == [(2, float("inf"))]
    stored = {file.path for file in mlflow_client.list_artifacts(record["run"])}
    assert stored == {"report.html"}


def records(data):
    """The records of a .wandb file, whose format is LevelDB's log."""
    at, parts = 7, []
    while at < len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        parts.append(data[at + 7 : at + 7 + size])
        at += 7 + size
        # 1: whole, 4: the last of several.
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []


def wandb_sent(folder):
    """The rows and the names of files that the client would send."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows, names = [], set()
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in records(path.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            names |= {file.path for file in record.files.files}
            items = record.history.item
            named = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in items
            }
            rows += [named] if named else []
    return rows, names


def test_wandb_holds_each_row_once(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    log_run(folder, "wandb", [1, 2, 3])
    log_run(folder, "wandb", [2, 3, 4], drop=True)
    # Its own process may still be writing when the client has let go.
    until = time.monotonic() + 20
    while len((sent := wandb_sent(folder))[0]) < 8 and time.monotonic() < until:
        time.sleep(0.1)
    rows, files = sent
    assert "config.json" in files
    losses = [(r["train/step"], r["train/loss"]) for r in rows if "train/loss" in r]
    assert losses == [(k, 1 / k) for k in (1, 2, 3, 4)]
    numbers = [r["_step"] for r in rows if "train/loss" in r]
    assert numbers == sorted(set(numbers))
    seconds = [r["timing/train/step"] for r in rows if "timing/train/seconds" in r]
    assert seconds == [1, 2, 3, 4]
    names = {p.name for p in folder.glob("wandb/offline-run-*/*.wandb")}
    record = json.loads((folder / "tracking.json").read_text())["wandb"]
    assert names == {f"run-{record['run']}.wandb"}
    out, err = capfd.readouterr()
    assert "offline" in out and err == ""


class Failing:
    """A service that goes away."""

    run_id, place = "7", "somewhere"
    calls: list[str]
    numbers: list[int]

    def __init__(self, workdir: pathlib.Path, config: dict, run_id: str | None) -> None:
        Failing.calls, Failing.numbers = [], []

    def send(self, points, number, when):
        Failing.calls.append(points.tag)
        Failing.numbers.append(number)
        if points.tag.startswith("timing"):
            raise OSError("no route to host")

    def flush(self):
        pass

    def attach(self, path):
        pass

    def finish(self, failed):
        pass


def test_a_service_that_fails_does_not_fail_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(CLIENTS, "mlflow", Failing)
    log_run(tmp_path, "mlflow", [1, 2, 3])
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("mlflow fails") == 1 and "OSError: no route to host" in said
    assert Failing.calls == ["train", "timing/train"]
    record = json.loads((tmp_path / "tracking.json").read_text())
    assert record == {"mlflow": {"run": "7"}}
    # What was not sent is sent at the next start.
    log_run(tmp_path, "mlflow", [])
    assert Failing.calls == ["train", "train", "train", "timing/train"]
    assert Failing.numbers == [1, 2, 3, 4]


class Kept(Failing):
    """A service that works."""

    def send(self, points, number, when):
        Failing.numbers.append(number)


def test_numbers_go_on_and_changed_rows_are_told_of(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(CLIENTS, "mlflow", Kept)
    log_run(tmp_path, "mlflow", [1, 2, 3])
    assert Failing.numbers == [1, 2, 3, 4, 5, 6]
    log_run(tmp_path, "mlflow", [4])
    assert Failing.numbers == [7, 8]
    assert "have changed" not in capsys.readouterr().out
    path = tmp_path / "iterations" / "001" / "metrics.jsonl"
    path.write_text(path.read_text().replace("0.5", "0.25"))
    log_run(tmp_path, "mlflow", [5])
    said = " ".join(capsys.readouterr().out.split())
    assert Failing.numbers == [9, 10] and said.count("have changed since") == 1


def test_a_run_that_fails_is_not_finished_there(tmp_path, mlflow_client):
    with (
        pytest.raises(RuntimeError),
        open_log(
            tmp_path, dataclasses.replace(CONFIG, report_to="mlflow"), RunConsole()
        ),
    ):
        raise RuntimeError
    record = json.loads((tmp_path / "tracking.json").read_text())["mlflow"]
    assert mlflow_client.get_run(record["run"]).info.status == "KILLED"


def test_no_address_is_said_plainly(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("mlflow.MlflowClient", lambda: 1 / 0)
    with pytest.raises(BadInput, match="MLFLOW_TRACKING_URI is not set"):
        check_trackers("mlflow")


def test_wandb_that_is_turned_off_is_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    check_trackers("wandb")
    log_run(tmp_path, "wandb", [1])
    assert not (tmp_path / "tracking.json").exists()


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r'pip install "tpmm_jax\[wandb\]"'):
        check_trackers(["wandb"])


def test_what_its_client_refuses_is_said_before_anything(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"nowhere://{tmp_path}")
    with pytest.raises(BadInput, match="report_to 'mlflow' cannot be used"):
        check_trackers("mlflow")
