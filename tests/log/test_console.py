"""The console is calm in a log, fits its width, and estimates past compilation."""

import io
import re
import time

import pytest
from rich.console import Console
from rich.text import Text

from tpmm_jax.config import Config, EvaluationConfig, ModelSource
from tpmm_jax.data.config import DataConfig
from tpmm_jax.log import console as console_module
from tpmm_jax.log.comparison import comparison_table
from tpmm_jax.log.console import RunConsole, typed
from tpmm_jax.log.escapes import printable
from tpmm_jax.log.header import evaluation_text
from tpmm_jax.log.progress import Pace, clock_text, rate_text
from tpmm_jax.log.table import iteration_table
from tpmm_jax.steps import TrainConfig


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock():
    return Clock()


def iteration_row(t, *, rule="learned", half=0.04, **more):
    weights = {f"merge/weight_{k}": 1 / t for k in range(t)}
    return {
        "kind": "iteration",
        "iteration": t,
        "reward/mean": 0.41 + 0.09 * t,
        "reward/low": 0.41 + 0.09 * t - half,
        "reward/high": 0.41 + 0.09 * t + half,
        "kl/theta_0": 2.1 * t,
        "rewards/margins": 0.3 * t,
        "rewards/accuracies": 0.7,
        "pairs/train_accuracy": 0.74,
        "merge/rule": rule,
        "pairs": 1480,
        "seconds": 754.0,
        **weights,
        **more,
    }


BASE = {"iteration": 0, "reward/mean": 0.41, "reward/low": 0.37, "reward/high": 0.45}
ROWS = [BASE, *(iteration_row(t) for t in range(1, 5))]


def drawn(rows, width):
    out = io.StringIO()
    Console(file=out, width=1000).print(iteration_table(rows, width))
    return out.getvalue()


def spoken(use, *, width=None, file=None, clock=None):
    out, errors = file or io.StringIO(), io.StringIO()
    console = RunConsole(out, errors, width=width, clock=clock or Clock())
    use(console)
    return out.getvalue(), errors.getvalue()


@pytest.mark.parametrize("width", [24, 40, 60, 80, 100, 200])
@pytest.mark.parametrize("iterations", [1, 4, 9])
def test_the_table_fits_and_keeps_reward_by_iteration(width, iterations):
    rows = [BASE, *(iteration_row(t, seconds=4e4) for t in range(1, iterations + 1))]
    lines = drawn(rows, width).splitlines()
    table = lines[: 2 + len(rows)]
    assert max(len(line.rstrip()) for line in table) <= width
    for row, line in zip(rows, table[2:], strict=True):
        found = re.match(r" *(\d+) +(\d\.\d\d ± 0\.04)", line)
        assert found[1] == str(row["iteration"])
        assert found[2].startswith(f"{row['reward/mean']:.2f}")


def test_a_wide_table_says_everything():
    text = drawn(ROWS, 200)
    for title in ("vs θ0", "KL", "reference", "pairs", "time"):
        assert title in text
    # What is measured on the training pairs says so.
    assert "train margin" in text and "train acc." in text and "74 %" in text
    assert "θ0 .25 θ1 .25 θ2 .25 θ3 .25" in text
    assert "+0.36" in text and "1,480" in text and "12:34" in text
    assert "reference: learned" in text
    assert "no room" not in text


def test_a_narrow_table_names_the_columns_that_it_has_no_room_for():
    *_, last = drawn(ROWS, 80).splitlines()
    assert last.strip() == "no room for: train margin, pairs"


def test_80_columns_keep_the_reference_and_its_largest_weights():
    rows = [
        *ROWS,
        iteration_row(
            6,
            **{
                f"merge/weight_{k}": w
                for k, w in enumerate([0.4, 0.05, 0.05, 0.1, 0.1, 0.3])
            },
        ),
    ]
    last = drawn(rows, 80).splitlines()[2 + len(rows) - 1]
    assert "θ0 .40" in last and "θ5 .30" in last and re.search(r"\+[34]\b", last)


HELD_OUT = {
    "heldout/accuracy": 0.62,
    "heldout/accuracy/low": 0.55,
    "heldout/accuracy/high": 0.69,
}
COUNTS = {
    "pairs/train": 1480,
    "pairs/held_out": 420,
    "pairs/tied_prompts": 31,
    "pairs/dropped": 2,
    "pairs/flipped": 0,
    "rollout/cut": 0.034,
    "length/cut": 0.25,
}


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_held_out_accuracy_is_shown_before_that_of_training(width):
    rows = [BASE, *(iteration_row(t, **HELD_OUT) for t in range(1, 4))]
    text = drawn(rows, width)
    assert "held-out" in text and "62 %" in text
    assert "held-out: accuracy against θ0" in text
    assert ("62 % [55, 69]" in text) == (width >= 100)
    assert "held-out" not in drawn(ROWS, width)


def test_training_accuracy_is_a_dash_where_no_step_is_left_of_it():
    rows = [dict(row) for row in ROWS[:2]]
    del rows[1]["pairs/train_accuracy"]
    lines = drawn(rows, 200).splitlines()
    assert "train acc." in lines[0]
    assert lines[3].split()[-5:] == ["0.30", "–", "θ0", "1,480", "12:34"]


@pytest.mark.parametrize("width", [24, 40, 60, 80, 100, 200])
def test_counts_of_pairs_and_cut_answers_are_there_at_every_width(width):
    rows = [BASE, iteration_row(1), iteration_row(2, **COUNTS)]
    text = drawn(rows, width)
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    words = " ".join(text.split())
    assert (
        "pairs of iteration 2: 1,480 train (one a prompt), 420 held out (every two "
        "answers), 31 prompts tied, 2 dropped, 3 % of the answers cut evaluation: 25 % "
        "of the answers cut"
    ) in words


def test_what_rounds_to_zero_has_no_minus():
    rows = [BASE, iteration_row(1, **{"kl/theta_0": -0.001})]
    assert "-0.00" not in drawn(rows, 200) and " 0.00" in drawn(rows, 200)


def test_fewer_evaluation_prompts_than_asked_for_are_told():
    config = Config(
        iterations=1,
        model=ModelSource(source="model"),
        data=DataConfig(prompts="prompts.jsonl"),
        train=TrainConfig(learning_rate=1e-4),
        evaluation=EvaluationConfig(num_prompts=64),
    )
    text = evaluation_text(config, 6)
    assert text.startswith("6 prompts, ") and "num_prompts asks for 64" in text
    assert "asks for" not in evaluation_text(config, 64)


def test_a_run_without_rewards_shows_lengths():
    rows = [{"iteration": 0, "length/mean": 31.25}]
    rows.append({"iteration": 1, "length/mean": 40.0, **HELD_OUT})
    text = drawn(rows, 80)
    assert "length" in text and "31.2" in text and "reward" not in text
    assert "length" not in drawn([BASE | {"length/mean": 3.0}, *ROWS[1:]], 200)


WINS = {"win/theta_0": 0.82, "win/theta_0/low": 0.755, "win/theta_0/high": 0.88}
BEATS = {"win/previous": 0.515, "win/previous/low": 0.45, "win/previous/high": 0.58}


def winning(iterations=4, **more):
    rows = (iteration_row(t, **WINS, **BEATS, **more) for t in range(1, iterations + 1))
    return [BASE, *rows]


@pytest.mark.parametrize("width", [24, 40, 60, 80, 100, 200])
@pytest.mark.parametrize("iterations", [1, 4, 9])
def test_a_table_with_win_rates_fits(width, iterations):
    lines = drawn(winning(iterations, seconds=4e4), width).splitlines()
    assert max(len(line.rstrip()) for line in lines[: iterations + 3]) <= width


def test_80_columns_have_win_rates_and_the_reference():
    text = drawn(winning(), 80)
    assert "win θ0" in text and "win prev" in text and "82 %" in text
    assert "52 %" in text and "θ1 .25 +2" in text and "a tie counts half" in text
    assert "win" not in drawn(ROWS, 80)


def test_wide_win_rates_have_their_intervals():
    text = drawn(winning(), 200)
    assert "82 % [76, 88]" in text and "52 % [45, 58]" in text


def test_an_iteration_that_the_watch_warned_of_is_marked():
    rows = [*winning(2)[:2], iteration_row(2, watch=["reward rose while x fell"])]
    lines = drawn(rows, 80).splitlines()
    assert lines[4].split()[0] == "2!" and lines[3].split()[0] == "1"
    assert "!: warned" in drawn(rows, 80) and "!" not in drawn(ROWS, 80)


def test_the_spread_of_several_scorers_goes_first_where_there_is_no_room():
    rows = [BASE, iteration_row(1, **{"reward/spread": 0.25})]
    assert "spread" in drawn(rows, 200) and "0.25" in drawn(rows, 200)
    assert "spread" not in drawn(ROWS, 200)
    without, narrow = (
        drawn(some, 60).partition("no room for: ")
        for some in ([BASE, iteration_row(1)], rows)
    )
    assert narrow[0] == without[0] and narrow[2].startswith("spread, ")


def test_rules_that_differ_are_named_in_their_rows():
    rows = [BASE, iteration_row(1, rule="initial"), iteration_row(2, rule="learned")]
    lines = drawn(rows, 200).splitlines()
    assert "initial θ0 " in lines[3] and "learned θ0 .50 θ1 .50" in lines[4]


def test_a_lopsided_interval_is_not_shown_as_symmetric():
    rows = [BASE, iteration_row(1) | {"reward/low": 0.30, "reward/high": 0.51}]
    assert "0.50 [0.30, 0.51]" in drawn(rows, 80)
    assert "±" not in drawn(rows, 80)


@pytest.mark.parametrize(
    ("half", "shown"), [(0.0, "0.50"), (0.004, "0.500 ± 0.004"), (1.5, "0.5 ± 1.5")]
)
def test_decimals_follow_the_interval(half, shown):
    assert shown in drawn([iteration_row(1, half=half)], 80)


def test_the_table_of_models_goes_on_below_where_it_is_too_wide():
    row = {"reward/mean": 0.5, "reward/low": 0.4, "reward/high": 0.6}
    row |= {f"score/{name}/mean": 1.0 for name in ("calm", "careful", "another")}
    rows = [{"name": name, **row} for name in ("theta_0", "theta_4")]
    out = io.StringIO()
    Console(file=out, width=1000).print(comparison_table(rows, "theta_0", 34))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert all(len(line) <= 34 for line in lines[:-1])
    assert sum(line.startswith("theta_0") for line in lines) == 2
    assert "0.500 [0.400, 0.600]" in lines[2] and "theta_0" in lines[-1]


def test_missing_and_non_finite_values_leave_a_row():
    rows = [{"iteration": 0}, {"iteration": 1, "reward/mean": float("nan")}]
    lines = drawn(rows, 80).splitlines()
    assert lines[2].split()[0] == "0" and lines[3].split() == ["1", "nan"]


def test_a_table_without_rows_is_nothing():
    assert drawn([], 80).strip() == ""


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize(
    "environment",
    [{"FORCE_COLOR": "1"}, {"CI": "true"}, {"TERM": "dumb"}, {"NO_COLOR": "1"}],
    ids=lambda e: next(iter(e)),
)
def test_a_log_file_holds_no_control_codes(monkeypatch, width, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def use(console):
        console.header("Title", [("model", "m [/bold] :smile:"), ("disk", "x" * 300)])
        with console.phase("train", 3, "steps") as phase:
            for _ in range(3):
                phase.advance(loss="0.5")
        console.note("n")
        console.warn("w " * 100)
        console.iteration_table(winning(watch=["w"]))
        console.next_steps(["python -m tpmm_jax.sample " + "x" * 300])
        console.error("broken [red]")

    out, errors = spoken(use, width=width)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out + errors)
    assert "m [/bold] :smile:" in out
    command = typed("python")
    assert f"\n  {command} -m tpmm_jax.sample " + "x" * 300 + "\n" in out
    assert "warning: " + "w " * 99 + "w" in out
    assert errors == "error: broken [red]\n"
    assert "error" not in out


HOSTILE = "\x1b[31mred\x1b]0;title\x07 nul\x00 csi\x9b2J turned\u202e half\ud800"


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_text_of_a_file_cannot_steer_the_terminal(stream):
    out, errors = stream(), stream()
    console = RunConsole(out, errors, width=200)
    uses = [
        (lambda: console.note(HOSTILE), out),
        (lambda: console.warn(HOSTILE), out),
        (lambda: console.error(HOSTILE), errors),
        (lambda: console.header(HOSTILE, [("a", HOSTILE), (HOSTILE, "b")]), out),
        (lambda: console.show(Text(HOSTILE)), out),
        (lambda: console.next_steps([HOSTILE]), out),
    ]
    for use, where in uses:
        use()
        said = where.getvalue()
        for wanted in ("\\x1b[31mred\\x1b]0;title", "nul\\x00", "\\x9b2J", "\\u202e"):
            assert wanted in said
        harm = "\x1b\\[31mred|\x1b]0|[\x07\x00\x9b\u202e\ud800]"
        assert not re.search(harm, said)


def test_printable_keeps_what_only_looks_odd():
    text = "é 😀\u200d日本\u3000\n\tשלום\u200f"
    assert printable(text) == text


def test_lines_of_a_long_phase_are_ten_seconds_apart_or_more(clock):
    def use(console):
        with console.phase("train", 1000, "steps") as phase:
            for _ in range(1000):
                clock.now += 0.5
                phase.advance(loss="0.5")

    lines = spoken(use, clock=clock)[0].splitlines()
    assert lines[0].split() == ["train", "1,000", "steps"]
    assert lines[1].split()[1] == "100/1,000"
    assert "7:30 left" in lines[1] and "2.0 steps/s" in lines[1]
    assert lines[-1].split()[1:4] == ["1,000/1,000", "steps", "8:20"]
    assert len(lines) == 11


def test_a_quick_phase_takes_one_line_and_a_slow_one_one_a_minute(clock):
    def use(seconds, total):
        clock.now = 0.0

        def run(console):
            with console.phase("train", total, "steps") as phase:
                for _ in range(40):
                    clock.now += seconds
                    phase.advance()

        return len(spoken(run, clock=clock)[0].splitlines())

    assert use(0.01, 40) == 1
    assert use(30.0, 4000) == 22


def test_a_phase_that_takes_a_second_says_that_it_began(monkeypatch, clock):
    monkeypatch.setattr(console_module, "_BEGIN_SECONDS", 0.01)
    out = io.StringIO()
    with RunConsole(out, clock=clock).phase("train", 3, "steps"):
        until = time.monotonic() + 30
        while not out.getvalue() and time.monotonic() < until:
            time.sleep(0.01)
        assert out.getvalue().split() == ["train", "3", "steps"]
    assert len(out.getvalue().splitlines()) == 2


def test_a_phase_that_fails_says_so_and_lets_the_error_through(clock):
    def use(console):
        with pytest.raises(RuntimeError), console.phase("train", 9, "steps") as phase:
            phase.advance(2)
            raise RuntimeError

    assert "2/9 steps  0:00  stopped" in spoken(use, clock=clock)[0]


def test_an_empty_phase_is_complete(clock):
    def use(console):
        with console.phase("train", 0, "steps"):
            pass

    out = spoken(use, clock=clock)[0]
    assert "0/0 steps" in out and "stopped" not in out


@pytest.mark.parametrize("width", [60, 80, 200])
def test_bars_of_nested_phases_fit_a_terminal(monkeypatch, width, clock):
    monkeypatch.setenv("TERM", "xterm-256color")
    seen = []

    def use(console):
        with (
            console.phase("iteration", 4, "phases") as outer,
            console.phase("train", 5000, "steps") as inner,
        ):
            for _ in range(3):
                clock.now += 2
                inner.advance(loss="0.603", margin="0.10")
            plain = io.StringIO()
            Console(file=plain, width=1000).print(console._bars())
            seen.extend(plain.getvalue().splitlines())
            console.note("a line above the bars")
            outer.advance()

    out = spoken(use, width=width, file=Terminal(), clock=clock)[0]
    assert max(len(line.rstrip()) for line in seen) <= width
    assert "3/5,000 steps" in seen[1] and "left" in seen[1]
    assert "a line above the bars" in out
    assert out.endswith("\x1b[?25h") or "\x1b[?25h" in out  # the cursor is back


def test_an_ascii_log_shows_question_marks_and_goes_on():
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    RunConsole(file, io.StringIO()).iteration_table(ROWS)
    file.flush()
    assert b"0.50 ? 0.04" in raw.getvalue()


def test_time_left_ignores_the_first_item():
    pace = Pace(total=101, start=0.0)
    pace.advance(1, 300.0)  # compiles
    assert pace.rate() is None and pace.remaining(300.0) is None
    for item in range(1, 11):
        pace.advance(1, 300.0 + 2.0 * item)
    assert pace.rate() == pytest.approx(0.5)
    assert pace.remaining(320.0) == pytest.approx(180.0)
    assert pace.remaining(321.0) == pytest.approx(179.0)


def test_time_left_follows_a_change_of_speed():
    pace = Pace(total=1000, start=0.0)
    now = 0.0
    for item in range(200):
        now += 1.0 if item < 100 else 0.1
        pace.advance(1, now)
    assert pace.remaining(now) == pytest.approx(80.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (725, "12:05"), (11045, "3:04:05")],
)
def test_clock_text(seconds, text):
    assert clock_text(seconds) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(None, ""), (0.25, "4.0 s each"), (12.34, "12.3 x/s"), (4321.0, "4,321 x/s")],
)
def test_rate_text(rate, text):
    assert rate_text(rate, "x") == text


def test_a_command_is_written_as_the_shell_finds_it(monkeypatch, tmp_path):
    """That of this environment, which need not be on the path."""
    environment = tmp_path / ".venv" / "bin"
    environment.mkdir(parents=True)
    for name in ("python", "tpmm"):
        (environment / name).touch(mode=0o755)
    monkeypatch.setattr("sys.executable", str(environment / "python"))
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.chdir(tmp_path)
    out = io.StringIO()
    RunConsole(out).next_steps(
        ["try     tpmm sample runs/x", "tpmm sample x", "in Python   import tpmm as x"]
    )
    assert out.getvalue().splitlines()[2:] == [
        "  try     .venv/bin/tpmm sample runs/x",
        "  .venv/bin/tpmm sample x",
        "  in Python   import tpmm as x",
    ]
    monkeypatch.setenv("PATH", f"{environment}:/usr/bin")
    assert typed("tpmm") == "tpmm"
    monkeypatch.chdir("/")
    monkeypatch.setenv("PATH", "/usr/bin")
    assert typed("tpmm") == str(environment / "tpmm").lstrip("/")
    assert typed("tensorboard") == "tensorboard", "not installed there"
