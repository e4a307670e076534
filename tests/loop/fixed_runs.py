"""Fixed tiny runs, to see whether a change leaves their results as they were.

    PYTHONPATH=. python tests/loop/fixed_runs.py OUT             before the change
    PYTHONPATH=. python tests/loop/fixed_runs.py NEW --against OUT     after it

Each run takes seconds. The second command names every file of metrics, pairs, answers,
records and digests that differs, and exits with 1 if one does. Equal bytes are to be
expected on one machine with one version of JAX only, so no such file is kept here.
"""

import argparse
import dataclasses
import io
import json
import pathlib
import shutil
import sys

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import tiny_run  # noqa: E402

# Files whose bytes are results.
NAMES = (
    "metrics.jsonl", "trajectory.jsonl", "config.json", "data.json", "pairs.jsonl",
    "rollouts.jsonl", "evaluation*.jsonl", "judgements.jsonl", "summary.json",
    "reference.json",
)  # fmt: skip


def shortness(prompts, responses):
    return [[-float(len(text.split())) for text in texts] for texts in responses]


def judge(prompts, first, second):
    import numpy as np

    a, b = (tiny_run.score(prompts, [[t] for t in x])[:, 0] for x in (first, second))
    return np.clip(0.6 + 0.4 * np.sign(a - b), 0, 1)


def odd_prompts():
    return [f"w{2 * i + 1} w1 w3 w5 w7" for i in range(9)]


def write_pairs(path):
    import numpy as np

    rng = np.random.default_rng(0)
    even, odd = tiny_run.WORDS[::2], tiny_run.WORDS[1::2]
    with path.open("w") as file:
        for _ in range(48):
            row = {
                "prompt": " ".join(rng.choice(tiny_run.WORDS, 3)) + " ",
                "chosen": " ".join(rng.choice(even, 4)),
                "rejected": " ".join(rng.choice(odd, 4)),
            }
            file.write(json.dumps(row) + "\n")


def overrides(folder):
    """{run's name: what it changes of the tiny run's config}."""
    evaluation = [
        "evaluation.samples_per_prompt=2",
        'evaluation.sets={"odd": "fixed_runs:odd_prompts"}',
        'evaluation.scorers={"short": "fixed_runs:shortness"}',
        'evaluation.judges={"even": "fixed_runs:judge"}',
    ]
    lora = ["model.lora.rank=2", "model.lora.alpha=8", "model.lora.dropout=0.1"]
    offline = [
        "data.prompts=none", f"data.pairs={folder / 'pairs.jsonl'}", "scorer.name=none",
        "data.max_prompt_length=512",
    ]  # fmt: skip
    return {
        "learned": evaluation,
        "lora": [*lora, "train.learning_rate=2e-2"],
        "trust_region": [
            "reference.rule=trust_region",
            "reference.trust_region_tau=2",
            "train.accumulation=2",
        ],
        "offline": offline,
        "beta_dpo": ["loss.name=beta_dpo", "reference.rule=uniform", "iterations=1"],
        "simpo": [
            "loss.name=simpo",
            "loss.beta=2.0",
            "reference.rule=none",
            "iterations=1",
        ],
    }


def results(workdir):
    """{name: bytes} of all files that hold results."""
    found = {}
    for name in NAMES:
        for path in sorted(workdir.rglob(name)):
            data = path.read_bytes()
            if name == "trajectory.jsonl":
                # Orbax names its files at random: what counts is what they hold.
                rows = map(json.loads, data.splitlines())
                data = " ".join(row["digest"] for row in rows).encode()
            if name == "data.json":
                # The day is that of the first start.
                data = json.dumps({**json.loads(data), "date": None}).encode()
            found[str(path.relative_to(workdir))] = data
    # Shared by all runs: where they lie is no result.
    where = str(workdir.parent).encode()
    return {name: data.replace(where, b"WORKDIR") for name, data in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--against", type=pathlib.Path)
    parser.add_argument("--only", action="append")
    args = parser.parse_args()
    shutil.rmtree(args.output, ignore_errors=True)
    args.output.mkdir(parents=True)
    output = args.output.resolve()
    write_pairs(output / "pairs.jsonl")
    from tpmm_jax import iterate  # noqa: F401
    from tpmm_jax.config import load_config

    config = output / "tiny_config.py"
    config.write_text("from tiny_run import get_config\n")
    for name, changes in overrides(output).items():
        if args.only and name not in args.only:
            continue
        run_one(load_config(config, changes), output / name)
    if args.against is None:
        return 0
    differing = []
    for workdir in sorted(path for path in output.iterdir() if path.is_dir()):
        new, old = results(workdir), results(args.against.resolve() / workdir.name)
        bad = [n for n in sorted(new.keys() | old.keys()) if new.get(n) != old.get(n)]
        print(f"{workdir.name}: {len(new)} files, {len(bad)} differ")
        differing += [f"{workdir.name}/{n}" for n in bad]
    print("\n".join(differing))
    return 1 if differing else 0


def run_one(config, workdir):
    from tpmm_jax.iterate import iterate
    from tpmm_jax.log.console import RunConsole
    from tpmm_jax.loop.setup import open_run

    out = io.StringIO()
    config = dataclasses.replace(config)
    with open_run(config, workdir, RunConsole(out, out)) as run:
        iterate(run)


if __name__ == "__main__":
    sys.exit(main())
