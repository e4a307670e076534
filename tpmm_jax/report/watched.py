"""What a run looked at and what it did not: no news must not pass for good news."""

from tpmm_jax.config import flatten
from tpmm_jax.evaluation import cut_warning
from tpmm_jax.report.figures import theta
from tpmm_jax.report.gather import RunData

# Where an answer's measures come from that labelled nothing.
_INDEPENDENT = ("score/", "judge/")


def looked_at(run: RunData) -> list[str]:
    """Returns what the reward-hacking watch of the last iteration looked at.

    Nothing in runs that sampled nothing, and in those of versions without a watch.
    """
    if run.last.get("iteration", 0) == 0 or not _has_watch(run):
        return []
    found = []
    for name, what in (("kl/theta_0", "KL"), ("length/mean", "length")):
        if any(known in run.last for known in _of_sets(run, name)):
            found.append(what)
    if found and _independent(run) and run.rewarded():
        found.append("the reward beside independent measures")
    return found


def _has_watch(run: RunData) -> bool:
    """Whether the run's version had one: its config says so."""
    return "max_kl_per_token" in run.config.get("evaluation", {})


def _of_sets(run: RunData, name: str) -> list[str]:
    return [f"{of_set}/{name}".lstrip("/") for of_set in run.sets()]


def _independent(run: RunData) -> bool:
    """Whether a further scorer or a judge rated the answers."""
    return any(f"/{head}" in f"/{name}" for name in run.last for head in _INDEPENDENT)


def not_looked_at(run: RunData) -> str:
    """Returns what the reward-hacking watch could not look at, "" if it saw all."""
    if run.last.get("iteration", 0) == 0 or not _has_watch(run):
        return ""
    if not run.sets():
        return (
            "The reward-hacking watch looked at nothing, since nothing was sampled: "
            "not at reward, KL or length. Offline, data.eval_prompts gives it answers."
        )
    if not run.rewarded():
        return (
            "No scorer rated the answers, so it could not see whether a reward is "
            "exploited."
        )
    if not _independent(run):
        return (
            "No further scorer or judge rated the answers, so it could not see whether "
            "the reward is exploited: evaluation.scorers, evaluation.judges."
        )
    return ""


def not_shown(run: RunData) -> list[str]:
    """Returns which sections the page leaves out, and why, of finished iterations."""
    if not run.last:
        return []
    found, last = [], run.last
    if not run.sets():
        found.append(
            "reward, distance, length, variety and sample answers: nothing was sampled"
        )
    elif not run.rewarded():
        found.append("reward and win rates: no scorer rated the answers")
    if last["iteration"] > 0 and "heldout/accuracy" not in last:
        found.append(
            "held-out pairs: none were held out, or the run is of an older version"
        )
    if last["iteration"] > 0 and "merge/weight_0" not in last:
        found.append("merged reference: the loss has none")
    return found


def cut_answers(run: RunData) -> str:
    """Returns a warning of answers of the last iteration that were cut; "" if few."""
    limit = flatten(run.config).get("rollout.max_new_tokens")
    t = run.last.get("iteration", 0)
    names = {"rollout/cut": f"iteration {t}"}
    for of_set, name in zip(run.sets(), _of_sets(run, "length/cut")):
        who = f"{theta(t)}{f' on {of_set}' if of_set else ''}"
        who = f"the mean of {theta(0)} to {theta(t)}" if of_set == "ship" else who
        names[name] = f"evaluation of {who}"
    cuts = {
        what: run.number(run.last, name)
        for name, what in names.items()
        if name in run.last
    }
    known = limit if isinstance(limit, int) else None
    return cut_warning(cuts, "rollout.max_new_tokens", known)
