"""The launch scripts, against commands that only say what they were called with."""

import os
import pathlib
import shutil
import signal
import subprocess
import time

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
    with_codes(tmp_path, "python", 75, 137, 134, 139, 0)
    done = call(tmp_path, "node.sh", "--config", "a b", FOLDER=str(tmp_path), PAUSE="0")
    assert done.returncode == 0
    assert calls(tmp_path) == ["-m tpmm_jax.train --config a b"] * 5


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


@pytest.mark.parametrize("processes", [1, 2])
def test_a_process_that_stays_stopped_is_killed_and_all_start_again(
    tmp_path: pathlib.Path, processes: int
) -> None:
    # The first time the last process stops itself; another one would go on for ever.
    stub(
        tmp_path,
        "python",
        """
echo "$@" >>"$FOLDER/calls"
n=$(wc -l <"$FOLDER/calls")
if [ "$n" -gt "$PROCESSES" ]; then exit 0; fi
case "$*" in *"--process-id 0"*) exec sleep 600 ;; *) kill -STOP $$ ;; esac
""",
    )
    given = {"FOLDER": str(tmp_path), "PAUSE": "0", "GRACE": "1", "MAX_STOPPED": "1"}
    done = call(tmp_path, "node.sh", PROCESSES=str(processes), **given)
    assert done.returncode == 0, done.stderr
    assert "exit code 137, starting again (1)" in done.stderr
    assert len(calls(tmp_path)) == 2 * processes


def test_a_process_that_continues_in_time_is_not_killed(tmp_path: pathlib.Path) -> None:
    # Stopped at every other look.
    stub(
        tmp_path,
        "ps",
        """
echo look >>"$FOLDER/looks"
case $(wc -l <"$FOLDER/looks") in *[13579]) echo T ;; *) echo S ;; esac
""",
    )
    stub(
        tmp_path,
        "python",
        """
echo "$@" >>"$FOLDER/calls"
touch "$FOLDER/looks"
until [ "$(wc -l <"$FOLDER/looks")" -ge 4 ]; do sleep 0.1; done
""",
    )
    given = {"FOLDER": str(tmp_path), "PAUSE": "0", "MAX_STOPPED": "1"}
    assert call(tmp_path, "node.sh", **given).returncode == 0
    assert len(calls(tmp_path)) == 1


def test_a_launcher_that_is_stopped_as_well_kills_nothing(
    tmp_path: pathlib.Path,
) -> None:
    # As Ctrl-Z and fg do to all processes of a terminal's job.
    stub(tmp_path, "python", 'echo "$@" >>"$FOLDER/calls"; sleep 2')
    given = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    given |= {"FOLDER": str(tmp_path), "MAX_STOPPED": "2"}
    line = ["bash", LAUNCH / "node.sh"]
    run = subprocess.Popen(line, env=given, start_new_session=True)
    while not (tmp_path / "calls").exists():
        assert run.poll() is None
    os.killpg(run.pid, signal.SIGSTOP)
    time.sleep(5)
    os.killpg(run.pid, signal.SIGCONT)
    assert run.wait(20) == 0
    assert len(calls(tmp_path)) == 1


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
    stub(home / "launch", "node.sh", "while true; do sleep 0.1; done")
    assert on_host(command) == 0 and on_host(command) == 2
    stop = call(tmp_path, "tpu_pod.sh", "pod", "stop", ZONE="us-x1-a")
    assert on_host(stop.stdout.partition("--command=")[2]) == 0
    assert on_host(gone) == 0
    assert call(tmp_path, "tpu_pod.sh", "pod", "rest", ZONE="z").returncode == 2


@pytest.mark.parametrize("left", ["nothing", "no number", "a gone one", "another's"])
def test_a_pod_where_nothing_runs_is_stopped_and_started(
    tmp_path: pathlib.Path, left: str
) -> None:
    home = tmp_path / "tpmm_jax"
    (home / "launch").mkdir(parents=True)
    stub(home / "launch", "node.sh", "exit 0")
    stub(tmp_path, "gcloud", 'cd "$HOME"; for last; do :; done; bash -c "${last#*=}"')
    given = {"HOME": str(tmp_path), "ZONE": "us-x1-a"}
    other = subprocess.Popen(["sleep", "60"])
    if left == "a gone one":
        other.kill()
        other.wait()
    if left != "nothing":
        number = "" if left == "no number" else str(other.pid)
        (home / "launch.pid").write_text(number)
    stopped = call(tmp_path, "tpu_pod.sh", "pod", "stop", **given)
    assert stopped.returncode == 0 and stopped.stdout == "nothing runs here\n"
    started = call(tmp_path, "tpu_pod.sh", "pod", "start", **given)
    assert started.returncode == 0 and started.stdout == "started\n"
    assert left == "a gone one" or other.poll() is None
    other.kill()
    other.wait()


def test_slurm_starts_all_tasks_again_and_queues_again_before_its_end(
    tmp_path: pathlib.Path,
) -> None:
    with_codes(tmp_path, "srun", 75, 134, 139, 0)
    given = {"FOLDER": str(tmp_path), "PAUSE": "0", "SLURM_JOB_ID": "7"}
    assert call(tmp_path, "slurm.sh", "--config", "c", **given).returncode == 0
    line = "--wait=30 --kill-on-bad-exit=0 python -m tpmm_jax.train --config c"
    assert calls(tmp_path) == [line] * 4
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


def test_slurm_starts_again_so_often_and_not_where_it_changes_nothing(
    tmp_path: pathlib.Path,
) -> None:
    given = {"FOLDER": str(tmp_path), "PAUSE": "0", "MAX_RESTARTS": "2"}
    # A 75 does not count.
    with_codes(tmp_path, "srun", 137, 75, 134, 139, 0)
    assert call(tmp_path, "slurm.sh", **given).returncode == 139
    assert len(calls(tmp_path)) == 4
    for code in (1, 2, 3, 4):
        (tmp_path / "calls").unlink()
        with_codes(tmp_path, "srun", code, 0)
        assert call(tmp_path, "slurm.sh", **given).returncode == code
        assert len(calls(tmp_path)) == 1


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
