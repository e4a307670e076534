"""Draws docs/rooms.svg, the rooms in the order in which they may import each other.

    python benchmarks/rooms.py

The order is the one that tests/test_imports.py walks; only the short descriptions
stand here.
"""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
HOLDS = {
    "axes": "names of axes",
    "chips": "accelerators",
    "errors": "errors, exit codes",
    "compiling": "programs kept",
    "mesh": "devices, shardings",
    "stopping": "signals, time-outs",
    "hosts": "many processes",
    "models": "layers to Decoder",
    "data": "prompts, pairs, tokens",
    "evaluation": "intervals, the watch",
    "losses": "log-probs, losses",
    "rewards": "scorers, judges",
    "merging": "rules, weights",
    "sampling": "drawing answers",
    "steps": "jitted steps",
    "fit": "one training loop",
    "store": "the trajectory on disk",
    "weights": "models from and to files",
    "scoring": "models as scorers",
    "config": "a run's fields",
    "facade": "import tpmm_jax",
    "log": "terminal, metrics",
    "report": "report.html",
    "loop": "phases of an iteration",
    "iterate": "the algorithm",
    "reward_runs": "training a reward model",
    "planning": "what a run takes",
    "commands": "tpmm COMMAND",
    "demo": "the quickstart",
}
# Fill and border by what a room may touch.
DISK, PURE = ("#fdf1e3", "#c9813a"), ("#e9f1fb", "#4a7ab5")
TOUCHES_DISK = {
    *("data", "store", "weights", "facade", "log", "report", "loop", "iterate"),
    *("commands", "demo", "merging", "config", "scoring", "reward_runs"),
    "planning",
}
BOX_WIDTH, BOX_HEIGHT, GAP, ROW, MARGIN = 150, 46, 12, 66, 24


def order() -> list[tuple[str, ...]]:
    """Returns the rows of rooms, from the one that imports nothing."""
    tree = ast.parse((ROOT / "tests" / "test_imports.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and _name(node.targets[0]) == "ORDER":
            return list(ast.literal_eval(node.value))
    raise SystemExit("tests/test_imports.py has no ORDER")


def _name(node: ast.expr) -> str | None:
    return node.id if isinstance(node, ast.Name) else None


def box(room: str, x: float, y: float) -> str:
    """Returns one room."""
    fill, border = DISK if room in TOUCHES_DISK else PURE
    middle = x + BOX_WIDTH / 2
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="7" '
        f'fill="{fill}" stroke="{border}"/>\n'
        f'<text x="{middle:g}" y="{y + 19:g}" class="name">{room}</text>\n'
        f'<text x="{middle:g}" y="{y + 36:g}" class="what">{HOLDS[room]}</text>\n'
    )


def picture(rows: list[tuple[str, ...]]) -> str:
    """Returns the SVG; what a row imports lies below it."""
    most = max(len(row) for row in rows)
    wide = most * (BOX_WIDTH + GAP) - GAP
    width, height = wide + 2 * MARGIN + 90, len(rows) * ROW + 2 * MARGIN + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif">\n'
        "<style>.name{font-size:14px;font-weight:600;text-anchor:middle;fill:#1c2733}"
        ".what{font-size:11px;text-anchor:middle;fill:#45525f}"
        ".note{font-size:12px;fill:#45525f}</style>\n"
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n'
    ]
    for i, row in enumerate(reversed(rows)):
        y = MARGIN + i * ROW
        x = MARGIN + (wide - len(row) * (BOX_WIDTH + GAP) + GAP) / 2
        for j, room in enumerate(row):
            parts.append(box(room, x + j * (BOX_WIDTH + GAP), y))
    x, end = wide + MARGIN + 30, MARGIN + len(rows) * ROW - (ROW - BOX_HEIGHT)
    parts.append(
        f'<path d="M{x} {MARGIN} V{end} m-6 -10 l6 10 l6 -10" fill="none" '
        'stroke="#45525f" stroke-width="1.5"/>\n'
        f'<text transform="translate({x + 18} {(MARGIN + end) / 2:g}) rotate(90)" '
        'text-anchor="middle" class="note">may import</text>\n'
    )
    y = end + 26
    for x, (fill, border), text in (
        (MARGIN, PURE, "computes only"),
        (MARGIN + 150, DISK, "reads or writes files"),
    ):
        parts.append(
            f'<rect x="{x}" y="{y - 11}" width="14" height="14" rx="3" fill="{fill}" '
            f'stroke="{border}"/>\n<text x="{x + 21}" y="{y}" class="note">{text}'
            "</text>\n"
        )
    return "".join(parts) + "</svg>\n"


def main() -> None:
    (ROOT / "docs" / "rooms.svg").write_text(picture(order()), encoding="utf-8")


if __name__ == "__main__":
    main()
