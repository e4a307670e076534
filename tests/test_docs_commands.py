"""Every command that the README and docs show is run, or shown to be runnable.

The commands of our own command lines and the Python examples run as they stand, one
after the other, in one folder where tiny stand-ins have the names that the documents
use: the configs, the hub's model, files of prompts and pairs. The documents share it,
so that a run that one of them made is there for the next. A Python example that begins
with "# NAME.py" is that file; as a config it runs with few prompts. Commands of the
shell, of make and of pip are compared with what they refer to.
"""

import importlib
import io
import json
import pathlib
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator

import pytest
from few_pages import empty_plots, few_pages  # noqa: F401

from tpmm_jax.demo import side_by_side

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS += [path for path in (ROOT / "CONTRIBUTING.md",) if path.exists()]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:[A-Z_]+=\S+ )*(?:python|tpmm|make|pip) [^`]+)`")
LINK = re.compile(r"\]\(([^)#]+)[^)]*\)")
OWN_FILE = re.compile(r"# (\w+\.py)\n")
CHAT = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
# Of a config that the documents show: as written, but small, with the shapes of
# tiny_run, so that what one has compiled serves both.
FEW = {
    "iterations": 1,
    "model.remat": "false",
    "data.max_prompt_length": 8,
    "rollout.max_new_tokens": 8,
    "rollout.prompts_per_iteration": 12,
    "rollout.samples_per_prompt": 3,
    "rollout.batch_size": 4,
    "pairing.holdout_fraction": 0.3,
    "evaluation.num_prompts": 6,
    "train.batch_size": 4,
}


def blocks(path: pathlib.Path) -> list[tuple[str, str]]:
    """(language, text) of every fenced block, then of every command in a line."""
    text = path.read_text(encoding="utf-8")
    found = [command.replace("\n", " ") for command in INLINE.findall(text)]
    inline = [("", command) for command in found if "COMMAND" not in command]
    return [*BLOCK.findall(text), *inline]


def commands(text: str) -> list[str]:
    """The command lines of a block: continued lines joined, comments dropped."""
    joined = re.sub(r"\\\n\s*", " ", text)
    lines = [re.sub(r"\s+#.*$", "", line).strip() for line in joined.splitlines()]
    starts = ("python ", "tpmm ", "make ", "pip ", "export ", "git ", "JAX_PLATFORMS=")
    return [part.strip() for line in lines if line.startswith(starts)
            for part in line.split("&&")]  # fmt: skip


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """A folder in which the documents' names stand for something tiny."""
    before = list(sys.path)
    sys.path[:0] = [str(ROOT / "tests" / name) for name in ("loop", "reward_runs")]
    import tiny_run

    folder = tmp_path_factory.mktemp("documents")
    (folder / "configs").mkdir()
    for path in CONFIGS:
        tiny = (
            "tiny_reward" if path.stem.startswith(("reward_", "umm_")) else "tiny_run"
        )
        name = "get_mixture as get_config" if path.stem == "umm_rm" else "get_config"
        text = f"from {tiny} import {name}  # noqa: F401\n"
        (folder / "configs" / path.name).write_text(text)
    model = folder / "HuggingFaceTB" / "SmolLM2-135M-Instruct"
    tiny_run.build_model(model)
    (model / "chat_template.jinja").write_text(CHAT)
    prompts = tiny_run.prompts()[:24]
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": p}) + "\n" for p in prompts)
    )
    (folder / "pairs.jsonl").write_text(
        "".join(
            json.dumps(
                {"prompt": f"{p} ", "chosen": "w2 w4", "rejected": f"w{i + 1} w3"}
            )
            + "\n"
            for i, p in enumerate(prompts[:6])
        )
    )
    (folder / "my_scorer.py").write_text("from tiny_run import score  # noqa: F401\n")
    (folder / "my_gold.py").write_text("from tiny_run import score  # noqa: F401\n")
    yield folder
    # Configs of these names are others to the tests that follow.
    sys.path[:] = before
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


def run(line: str) -> None:
    """Runs one of our command lines in this process."""
    words = shlex.split(line)
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words.pop(0)
    if words[:2] == ["python", "-m"]:
        module, argv = words[2], words[3:]
        assert module.startswith("tpmm_jax"), line
    else:
        assert words[0] == "tpmm", line
        module, argv = "tpmm_jax.commands.dispatch", words[1:]
    found = importlib.import_module(module)
    if hasattr(found, "__path__"):
        found = importlib.import_module(f"{module}.__main__")
    try:
        code = found.main(argv)
    except SystemExit as stop:  # --help, --version
        code = stop.code
    assert code in (0, None), f"{line}: exit code {code}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_commands_of_the_documents(
    path: pathlib.Path, sandbox: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sandbox)
    monkeypatch.syspath_prepend(str(sandbox))
    monkeypatch.setenv("TPMM_ASSETS", str(sandbox))
    # tpmm sample without a prompt reads them from a pipe.
    monkeypatch.setattr(sys, "stdin", io.StringIO("w2 w3\n"))
    if path.name != "README.md" and not (sandbox / "runs" / "smollm2").exists():
        run("tpmm train --config configs/smollm2.py")
    own = []
    for language, text in blocks(path):
        if language == "text":
            continue
        if language == "python" and (named := OWN_FILE.match(text)):
            own.append(named[1])
            (sandbox / named[1]).write_text(text)
            continue
        if language == "python" and "import tpmm_jax" in text:
            script = sandbox / "example.py"
            script.write_text(with_arrays(text))
            runpy.run_path(str(script))
            continue
        for line in commands(text):
            if re.search(r"^([A-Z_]+=\S+ )*(python -m tpmm_jax|tpmm) ?", line):
                if any(f"--config {name}" in line for name in own):
                    line += "".join(f" --set {k}={v}" for k, v in FEW.items())
                run(line)
            elif line in ("make quickstart", "python configs/quickstart.py"):
                assert side_by_side.main("configs/quickstart.py", []) == 0
            elif line.startswith("python -c "):
                exec(shlex.split(line)[2])
            else:
                check_reference(line)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_of_the_documents(path: pathlib.Path) -> None:
    # Brackets followed by parentheses are Python in a block of code.
    for target in LINK.findall(BLOCK.sub("", path.read_text(encoding="utf-8"))):
        assert "://" in target or (path.parent / target).exists(), target


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


def with_arrays(text: str) -> str:
    """Names that an example takes for granted."""
    return (
        "import numpy as np\n"
        "tokens_BT, mask_BT = np.full((2, 5), 4), np.ones((2, 5), int)\n" + text
    )


def check_reference(line: str) -> None:
    """What a command refers to exists: a make target, an extra, a file."""
    words = [w for w in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=\S*", w)]
    if not words:
        return
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), line
    elif words[0] == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for extra in re.findall(r"\[([\w,]+)\]", line):
            assert set(extra.split(",")) <= set(project["optional-dependencies"]), line
    elif words[0] == "python":
        # After "-m pytest" come options and their values.
        script = next(w for w in words[1:] if w.endswith(".py") or "/" in w)
        assert (ROOT / script).exists(), line
        for word in words:
            if word.endswith(".toml"):
                assert (ROOT / word).is_file(), line
    else:
        assert words[0] in ("export", "git", "cd"), f"{line}: not checked"
