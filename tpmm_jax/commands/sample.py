"""Talks to a model, or answers prompts: tpmm sample runs/smollm2

Exit codes: 0 done, 2 bad input, 3 corrupt checkpoint, 4 storage, 75 stopped.
"""

import argparse
import io
import json
import pathlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tpmm_jax.commands._answers import (
    Settings,
    escape_controls,
    sampling_of,
    standard_output,
    stream_answer,
)
from tpmm_jax.commands._chat import Chat, is_terminal, say_end
from tpmm_jax.commands._line import check_least, flag, guarded
from tpmm_jax.commands._prompt_file import (
    answer_file,
    answer_rows,
    check_file,
    read_prompts,
)
from tpmm_jax.commands._rows import row_options
from tpmm_jax.commands.options.sample import parse_args
from tpmm_jax.data.config import DataConfig
from tpmm_jax.errors import BadInput, Stopped
from tpmm_jax.log.console import RunConsole
from tpmm_jax.sampling import SamplingConfig
from tpmm_jax.weights.kept import run_workdir
from tpmm_jax.weights.loading import load
from tpmm_jax.weights.source import Model

DEFAULT_NEW_TOKENS = 256


def check_args(args: argparse.Namespace) -> SamplingConfig:
    """Returns the sampling; raises BadInput before a model is loaded."""
    most = DEFAULT_NEW_TOKENS if args.max_new_tokens is None else args.max_new_tokens
    config = sampling_of(args, most)
    config.validate(flag)
    check_least(args, {"num_samples": 1, "batch_size": 1})
    if args.prompt is not None and args.prompts is not None:
        raise BadInput("--prompt and --prompts are both given; give one of them")
    if args.prompt is not None and not args.prompt.strip():
        raise BadInput("--prompt is empty; give it a text")
    typed = args.prompt is None and args.prompts is None and is_terminal()
    if args.output is not None and (typed or args.prompt is not None):
        raise BadInput("--output is for many prompts; give --prompts FILE, or pipe")
    if typed and args.num_samples > 1:
        raise BadInput("--num-samples is for --prompt and --prompts, not for a chat")
    if args.system is not None and args.chat is False:
        raise BadInput("--system needs the chat template; leave --no-chat out")
    if args.output is not None:
        check_file(pathlib.Path(args.output))
    return config


def gather(args: argparse.Namespace, console: RunConsole) -> list[Any] | None:
    """Returns the prompts, or None where they will be typed."""
    if args.prompt is not None:
        return [args.prompt]
    if args.prompts is not None:
        data = DataConfig(
            prompt_field=args.prompt_field,
            chat=bool(args.chat),
            **row_options(args, pairs=False),
        )
        auto_chat = args.chat is None
        return read_prompts(args.prompts, data, console.note, auto_chat=auto_chat)
    if is_terminal():
        return None
    lines = [line.strip() for line in sys.stdin or ()]
    found = [line for line in lines if line]
    if not found:
        raise BadInput(
            "no prompt: standard input is empty; pipe one prompt per line, or give "
            "--prompt or --prompts"
        )
    return found


def choose_chat(
    args: argparse.Namespace, model: Model, prompts: list[Any] | None
) -> tuple[bool, str]:
    """Returns whether the chat template is used, and why, in words."""
    has = getattr(model.tokenizer, "chat_template", None) is not None
    ids = prompts is not None and all(isinstance(p, list) for p in prompts)
    ids = ids and all(isinstance(p[0], int) for p in prompts or ())
    if ids:
        if args.chat or args.system:
            raise BadInput("the prompts are token ids; --chat and --system need texts")
        return False, "token ids, as they are"
    if model.tokenizer is None:
        raise BadInput(
            f"{args.model} has no tokenizer (tokenizer.json); copy it from the model's "
            "publisher into that directory, or give prompts as token ids"
        )
    if (args.chat or args.system) and not has:
        raise BadInput(
            f"{'--chat' if args.chat else '--system'} needs a chat template, and the "
            f"tokenizer of {args.model} has none; use an instruction-tuned model"
        )
    if args.chat is not None:
        how = "chat template" if args.chat else "no chat template (--no-chat)"
        return args.chat, how
    if has:
        return True, "chat template (--no-chat for the text alone)"
    return False, "plain text (the model has no chat template)"


def check_room(model: Model, sampling: SamplingConfig) -> None:
    """Refuses answers that would leave the prompt none of the model's positions."""
    most = model.config.max_positions
    if sampling.max_new_tokens >= most:
        raise BadInput(
            f"--max-new-tokens is {sampling.max_new_tokens}; the model has {most} "
            f"positions for prompt and answer together: give at most {most - 1}"
        )


def introduce(
    model: Model,
    settings: Settings,
    args: argparse.Namespace,
    how: str,
    console: RunConsole,
) -> None:
    """Says what answers, and how."""
    source = model.origin["source"]
    if run_workdir(pathlib.Path(args.model)) is not None:
        source += " (what the run ships)"
    size = f"{model.decoder.num_params:,} parameters"
    console.note(f"model  {source}, {size}, {model.decoder.compute_dtype}")
    s = settings.sampling
    parts = [
        how,
        f"temperature {s.temperature:g}",
        *([f"top-p {s.top_p:g}"] if s.top_p < 1 else []),
        *([f"top-k {s.top_k}"] if s.top_k else []),
        f"at most {s.max_new_tokens} tokens",
        f"seed {settings.seed}",
    ]
    console.note(f"draws  {', '.join(parts)}")


def run(args: argparse.Namespace, console: RunConsole) -> int:
    """Loads the model and answers."""
    sampling = check_args(args)
    prompts = gather(args, console)
    if sys.stderr.isatty():
        console.note("loading the model")
    model = load(args.model, args.revision, args.dtype, base=args.base)
    if args.max_new_tokens is None:
        most = min(sampling.max_new_tokens, model.config.max_positions // 2)
        sampling = replace(sampling, max_new_tokens=most)
    check_room(model, sampling)
    chat, how = choose_chat(args, model, prompts)
    settings = Settings(
        sampling=sampling,
        seed=args.seed,
        chat=chat,
        system=args.system,
        num_samples=args.num_samples,
        batch_size=args.batch_size,
    )
    introduce(model, settings, args, how, console)
    out = standard_output()
    if prompts is None:
        Chat(model, settings, console, out).run()
    elif args.output is not None:
        path = pathlib.Path(args.output)
        try:
            answer_file(model, prompts, settings, path, console)
        except KeyboardInterrupt:
            console.note(
                f"stopped; {path} keeps the finished answers. The same command "
                "continues"
            )
            return Stopped.exit_code
    elif args.prompts is not None:
        for rows in answer_rows(model, prompts, settings):
            for row in rows:
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
            out.flush()
    else:
        return stream_all(model, prompts, settings, out, console)
    return 0


def stream_all(
    model: Model,
    prompts: Sequence[str],
    settings: Settings,
    out: io.TextIOBase,
    console: RunConsole,
) -> int:
    """Streams every prompt's answers, with a line of introduction if there are many."""
    num_samples = settings.num_samples
    for number, prompt in enumerate(prompts):
        for sample in range(num_samples):
            if len(prompts) > 1 and sample == 0:
                out.write(f"> {escape_controls(prompt, out)}\n")
            if num_samples > 1:
                out.write(f"[{sample + 1} of {num_samples}]\n")
            answer = stream_answer(
                model, prompt, settings, out, number=number, sample=sample
            )
            say_end(answer, console)
            if answer.interrupted:
                return Stopped.exit_code
            if len(prompts) > 1 or num_samples > 1:
                out.write("\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    return guarded(run, parse_args(argv), result_alone=True, own_keyboard=True)
