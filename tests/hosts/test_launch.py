"""The launch scripts, against commands that only say what they were called with."""

import os
import pathlib
import shutil
import subprocess

import pytest
import yaml

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))


def stub(folder: pathlib.Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


def call(
    folder: pathlib.Path, script: str, *words: str, **environment: str
) -> subprocess.CompletedProcess:
    given = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"} | environment
    return subprocess.run(
        ["bash", LAUNCH / script, *words],
        env=given, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


# Says its words, and ends with the next code of the file "codes".
CODES = """
echo "$@" >>"$FOLDER/calls"
n=$(($(wc -l <"$FOLDER/calls")))
exit "$(sed -n "${n}p" "$FOLDER/codes")"
"""


def with_codes(folder: pathlib.Path, name: str, *codes: int) -> None:
    (folder / "codes").write_text("".join(f"{code}\n" for code in codes))
    stub(folder, name, CODES)


def calls(folder: pathlib.Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: pathlib.Path) -> None:
    assert os.access(script, os.X_OK)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    found = subprocess.run(["shellcheck", script], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_a_node_goes_on_after_a_stop_and_a_death(tmp_path: pathlib.Path) -> None:
    with_codes(tmp_path, "python", 75, 137, 134, 0)
    done = call(tmp_path, "node.sh", "--config", "a b", FOLDER=str(tmp_path), PAUSE="0")
    assert done.returncode == 0
    assert calls(tmp_path) == ["-m tpmm_jax.train --config a b"] * 4


@pytest.mark.parametrize("code", [1, 2, 3, 4])
def test_a_node_ends_where_another_start_changes_nothing(
    tmp_path: pathlib.Path, code: int
) -> None:
    with_codes(tmp_path, "python", code)
    done = call(tmp_path, "node.sh", FOLDER=str(tmp_path), PAUSE="0")
    assert done.returncode == code and len(calls(tmp_path)) == 1


def test_deaths_are_bounded(tmp_path: pathlib.Path) -> None:
    with_codes(tmp_path, "python", *[137] * 9)
    given = {"FOLDER": str(tmp_path), "PAUSE": "0", "MAX_RESTARTS": "2"}
    assert call(tmp_path, "node.sh", **given).returncode == 137
    assert len(calls(tmp_path)) == 3


def test_processes_of_a_node_start_together_and_a_hanging_one_is_killed(
    tmp_path: pathlib.Path,
) -> None:
    # The first time process 1 is killed and process 0 hangs.
    stub(
        tmp_path,
        "python",
        """
echo "$@" >>"$FOLDER/calls"
n=$(wc -l <"$FOLDER/calls")
if [ "$n" -gt 2 ]; then exit 0; fi
case "$*" in *"--process-id 1"*) sleep 0.5; kill -KILL $$ ;; *) exec sleep 600 ;; esac
""",
    )
    given = {"FOLDER": str(tmp_path), "PAUSE": "0", "GRACE": "1", "PORT": "23456"}
    done = call(tmp_path, "node.sh", "--x", PROCESSES="2", **given)
    assert done.returncode == 0, done.stderr
    assert "exit code 137, starting again (1)" in done.stderr
    words = "-m tpmm_jax.train --x --coordinator localhost:23456 --num-processes 2"
    started = sorted(calls(tmp_path))
    assert started == sorted([f"{words} --process-id {i}" for i in (0, 1)] * 2)


def test_a_stopped_launcher_stops_its_processes_for_good(
    tmp_path: pathlib.Path,
) -> None:
    stub(
        tmp_path,
        "python",
        'trap "exit 75" TERM; echo "$@" >>"$FOLDER/calls"\n'
        "for i in $(seq 200); do sleep 0.1; done",
    )
    given = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    given |= {"FOLDER": str(tmp_path), "PROCESSES": "2"}
    run = subprocess.Popen(["bash", LAUNCH / "node.sh"], env=given)
    while not (tmp_path / "calls").exists() or len(calls(tmp_path)) < 2:
        assert run.poll() is None
    run.terminate()
    assert run.wait(20) == 75
    assert len(calls(tmp_path)) == 2


def test_a_pod_runs_the_command_on_every_host(tmp_path: pathlib.Path) -> None:
    stub(tmp_path, "gcloud", 'printf "%s\\n" "$@"')
    words = ("--config", "configs/gemma2b.py", "--set", 'data.fields={"a": "b c"}')
    done = call(tmp_path, "tpu_pod.sh", "pod", "start", *words, ZONE="us-x1-a")
    head, _, command = done.stdout.partition("--command=")
    start = ["compute", "tpus", "tpu-vm", "ssh", "pod", "--zone=us-x1-a"]
    assert head.splitlines() == [*start, "--worker=all"]
    # What the hosts' shell makes of it.
    home = tmp_path / "home" / "tpmm_jax"
    (home / "launch").mkdir(parents=True)
    stub(home / "launch", "node.sh", 'printf "%s|" "$PYTHON" "$@"')

    def on_host(command: str) -> int:
        line = ["bash", "-c", command]
        return subprocess.run(line, cwd=tmp_path / "home", timeout=20).returncode

    assert on_host(command) == 0
    wanted = "|".join([".venv/bin/python", *words]) + "|"
    log = home / "launch.log"
    while not log.exists() or log.read_text() != wanted:
        pass
    gone = f"while kill -0 $(cat {home}/launch.pid); do :; done 2>&1"
    assert on_host(gone) == 0
    # Once more while it runs, and then stopped.
    stub(home / "launch", "node.sh", "exec sleep 60")
    assert on_host(command) == 0 and on_host(command) == 2
    stop = call(tmp_path, "tpu_pod.sh", "pod", "stop", ZONE="us-x1-a")
    assert on_host(stop.stdout.partition("--command=")[2]) == 0
    assert on_host(gone) == 0
    assert call(tmp_path, "tpu_pod.sh", "pod", "rest", ZONE="z").returncode == 2


def test_slurm_starts_all_tasks_again_and_queues_again_before_its_end(
    tmp_path: pathlib.Path,
) -> None:
    with_codes(tmp_path, "srun", 75, 134, 0)
    given = {"FOLDER": str(tmp_path), "PAUSE": "0", "SLURM_JOB_ID": "7"}
    assert call(tmp_path, "slurm.sh", "--config", "c", **given).returncode == 0
    line = "--wait=30 --kill-on-bad-exit=0 python -m tpmm_jax.train --config c"
    assert calls(tmp_path) == [line] * 3
    stub(
        tmp_path,
        "srun",
        "trap 'exit 75' TERM; echo $$ >$FOLDER/pid; kill -TERM $PPID\n"
        "sleep 5 & wait $!",
    )
    stub(tmp_path, "scancel", 'echo "$@"; kill -TERM $(cat $FOLDER/pid)')
    stub(tmp_path, "scontrol", 'echo "$@"')
    done = call(tmp_path, "slurm.sh", **given)
    assert done.returncode == 75
    assert done.stdout.splitlines() == ["--signal=TERM 7", "requeue 7"]


def test_the_jobset_is_one_that_restarts_all_pods_together() -> None:
    made = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    assert made["kind"] == "JobSet" and made["spec"]["failurePolicy"]["maxRestarts"]
    job = made["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] and job["backoffLimit"] == 0
    [rule] = job["podFailurePolicy"]["rules"]
    # What another start would not change; 75, 134 and 137 are answered by one.
    assert rule["onExitCodes"]["values"] == [1, 2, 3, 4]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert "exec python -m tpmm_jax.train" in pod["containers"][0]["command"][-1]
