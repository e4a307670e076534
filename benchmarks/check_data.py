"""Speed of the data check: rows a second, tokenisation included.

    python benchmarks/check_data.py --model TOKENIZER_OR_MODEL [--rows 100000] [--chat]

Writes rows of many kinds (long and short, unicode, code, turns), then runs the very
command `tpmm check_data` on them in a fresh process and takes the wall clock of all
of it: starting Python, reading, tokenising, counting, printing.
"""

import argparse
import json
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
import time

WORDS = tuple(
    """the model answers a question about rivers and bridges in Norway because people
    often ask how long they are whether it rains there why nobody has built
    another""".split()  # noqa: SIM905
)


def text(rng: random.Random, words: int) -> str:
    """A text of so many words, now and then with a number, a mark or an accent."""
    extra = ("42", "3.14,", "café", "don't", "日本", "\n", "`x = 1`", "🙂", "end.")
    return " ".join(
        rng.choice(extra) if rng.random() < 0.1 else rng.choice(WORDS)
        for _ in range(words)
    )


def write_rows(path: pathlib.Path, count: int, chat: bool) -> None:
    """Writes explicit pairs; prompts of 45 words and answers of 30 in the mean."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            prompt = f"{number}: {text(rng, int(rng.expovariate(1 / 45)) + 1)} ="
            sides = [text(rng, int(rng.expovariate(1 / 30)) + 1) for _ in range(2)]
            row = {
                "prompt": prompt,
                "chosen": f" {sides[0]} a",
                "rejected": f" {sides[1]} b",
            }
            if chat:
                row = {
                    "prompt": [{"role": "user", "content": prompt}],
                    "chosen": [{"role": "assistant", "content": sides[0] + " a"}],
                    "rejected": [{"role": "assistant", "content": sides[1] + " b"}],
                }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main() -> None:
    """Prints one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--chat", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "pairs.jsonl"
        write_rows(path, args.rows, args.chat)
        command = [sys.executable, "-m", "tpmm_jax.check_data", str(path), "--json"]
        command += ["--model", args.model, *(["--chat"] if args.chat else [])]
        begin = time.perf_counter()
        run = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - begin
    found = json.loads(run.stdout)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = used.ru_utime + used.ru_stime
    kind = "conversations" if args.chat else "texts"
    print(
        f"{found['rows']:,} rows of {kind}, {len(found['errors'])} errors: "
        f"{seconds:.1f} s, {found['rows'] / seconds:,.0f} rows a second "
        f"({processor:.1f} s of processor time, {used.ru_maxrss / 2**20:.1f} GiB; "
        f"{found['counts']['tokens']:,} tokens in rows)"
    )


if __name__ == "__main__":
    main()
