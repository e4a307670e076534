"""Rated texts split into train, test and prompts for a study."""

import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "rewards"))
import split_ratings  # noqa: E402


def test_no_text_is_in_two_parts_and_order_decides_nothing(tmp_path, capsys):
    lines = [f"{n}\t{n % 7}\ttext number {n} of a film" for n in range(60)]
    lines.append("60\t1\tText  number 3 of a Film")
    parts = []
    for name, some in (("a", lines), ("b", lines[::-1])):
        path = tmp_path / f"{name}.txt"
        path.write_text("\n".join(some) + "\n")
        out = tmp_path / name
        options = ["--ratings", path, "--out", out, "--prompts", 9, "--test", 20]
        assert split_ratings.main([str(one) for one in (*options, "--words", 3)]) == 0
        files = {p.stem: p.read_text().splitlines() for p in out.iterdir()}
        parts.append({stem: sorted(rows) for stem, rows in files.items()})
    assert parts[0] == parts[1]
    read = {n: [json.loads(row) for row in rows] for n, rows in parts[0].items()}
    texts = {n: {row["text"].lower().split()[2] for row in read[n]} for n in (
        "train", "test")}  # fmt: skip
    prompts = {row["prompt"].lower().split()[2] for row in read["prompts"]}
    assert len(texts["train"]) == 31 and len(texts["test"]) == 20
    assert len(prompts) == 9 and not texts["train"] & texts["test"]
    assert not prompts & (texts["train"] | texts["test"])
    assert (
        split_ratings.main([str(one) for one in (*options[:4], "--prompts", 99)]) == 2
    )
    assert "60 different texts; wanted 99" in capsys.readouterr().err
