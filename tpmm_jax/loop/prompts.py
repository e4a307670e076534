"""Which prompts an iteration samples from: its own, drawn once from the seed."""

import functools
import hashlib
import json
import pathlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tpmm_jax.config import Config
from tpmm_jax.data.messages import as_dicts, written
from tpmm_jax.data.prompts import (
    Prompt,
    duplicate_prompts,
    load_prompts,
    parse_prompt,
)
from tpmm_jax.data.tokens import encode_prompts
from tpmm_jax.errors import BadInput
from tpmm_jax.report.console import RunConsole
from tpmm_jax.rewards import import_object
from tpmm_jax.store.files import write_text


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts ready to be sampled from.

    Attributes:
      numbers: what each prompt's random keys are folded from; never twice in a run.
      texts: as a scorer sees them.
      ids: token ids.
      held_out: whether the prompt trains nothing.
    """

    numbers: list[int]
    texts: list[str]
    ids: list[list[int]]
    held_out: list[bool]


@dataclass(frozen=True)
class PromptSchedule:
    """The prompts of every iteration and of the evaluation.

    What is held out is fixed for the run, by content, so that no checkpoint was ever
    trained on a held-out prompt, however often the pool is gone through.

    Attributes:
      train, held_out: places in the pool, in the order of their first use.
      per_iteration: how many of each an iteration takes.
      digest: SHA-256 of the pool's and the evaluation's contents.
    """

    pool: Sequence[Prompt]
    train: np.ndarray
    held_out: np.ndarray
    per_iteration: tuple[int, int]
    evaluation: EncodedPrompts
    encode: Callable[[Sequence[Prompt]], list[list[int]]]
    text: Callable[[Prompt, list[int]], str]
    seed: int
    digest: str

    def iteration(self, iteration: int) -> EncodedPrompts:
        """Returns the prompts of iteration 1, 2, ...; a used-up pool starts anew."""
        drawn = []
        streams = (self.train, self.held_out)
        for held, (stream, count) in enumerate(zip(streams, self.per_iteration)):
            for place in range((iteration - 1) * count, iteration * count):
                drawn.append((*self._at(stream, place), bool(held)))
        prompts = [self.pool[place] for _, place, _ in drawn]
        ids = self.encode(prompts)
        return EncodedPrompts(
            [epoch * len(self.pool) + place for epoch, place, _ in drawn],
            [self.text(prompt, i) for prompt, i in zip(prompts, ids)],
            ids,
            [held for _, _, held in drawn],
        )

    def _at(self, stream: np.ndarray, place: int) -> tuple[int, int]:
        """Returns (epoch, place in the pool); each epoch is shuffled anew."""
        epoch, index = divmod(place, len(stream))
        if epoch > 0:
            stream = np.random.default_rng([self.seed, epoch]).permutation(stream)
        return epoch, int(stream[index])

    def longest(self, iterations: int) -> int:
        """Returns the tokens of the longest prompt; encodes, and so checks, all."""
        used = [self.evaluation.ids]
        if self.pool:
            used += [self.iteration(t).ids for t in range(1, iterations + 1)]
        return max(len(ids) for prompts in used for ids in prompts)

    def uses(self, iterations: int) -> float:
        """Returns how often a training prompt is used on average."""
        return iterations * self.per_iteration[0] / max(len(self.train), 1)


def read_prompts(
    source: str, config: Config, cache: pathlib.Path, field_name: str
) -> list[Prompt]:
    """Returns the prompts of a source; those of a function are kept in ``cache``."""
    data = config.data
    if ":" not in source or pathlib.Path(source).exists():
        return load_prompts(source, field=data.prompt_field, split=data.split)

    def make() -> None:
        made = import_object(source, field_name)()
        lines = [json.dumps({"prompt": _plain(item)}) for item in made]
        write_text(cache, "".join(line + "\n" for line in lines))

    made_from(cache, source, make)
    return load_prompts(str(cache))


def made_from(path: pathlib.Path, source: str, make: Callable[[], None]) -> None:
    """Calls ``make`` unless ``path`` was made from ``source`` before."""
    mark = path.with_name(path.name + ".source")
    if path.exists() and mark.exists() and mark.read_text() == source:
        return
    mark.unlink(missing_ok=True)
    make()
    write_text(mark, source)


def _plain(item: Any) -> Any:
    value = item if isinstance(item, str) else list(item)
    _, faults = parse_prompt(value, "prompt")
    if faults:
        raise BadInput(f"a prompt that the function made is no prompt: {faults[0]}")
    return value


def make_schedule(
    config: Config, tokenizer: Any, workdir: pathlib.Path, console: RunConsole
) -> PromptSchedule:
    """Returns the schedule of a run.

    Evaluation prompts are those of data.eval_prompts, else set aside from the pool.

    Raises:
      BadInput: too few prompts, or prompts that cannot be read or encoded.
    """
    data, wanted = config.data, config.evaluation.num_prompts
    pool: list[Prompt] = []
    if data.prompts is not None:
        cache = workdir / "prompts.jsonl"
        pool = read_prompts(data.prompts, config, cache, "data.prompts")

    def encode(prompts: Sequence[Prompt]) -> list[list[int]]:
        encoded = encode_prompts(
            tokenizer,
            prompts,
            chat=data.chat,
            max_length=data.max_prompt_length,
            truncate=data.truncate_prompt,
        )
        return [prompt.ids for prompt in encoded]

    order = np.random.default_rng([config.seed, 0]).permutation(len(pool))
    if data.eval_prompts is not None:
        cache = workdir / "eval_prompts.jsonl"
        found = read_prompts(data.eval_prompts, config, cache, "data.eval_prompts")
        aside = found[:wanted]
    else:
        aside, order = [pool[i] for i in order[:wanted]], order[wanted:]
    train, held_out = _split(pool, order, config)
    _check_counts(config, len(pool), len(aside), len(train), len(held_out))
    _report_repeats(pool, aside, order, console)
    per_held = round(
        config.pairing.holdout_fraction * config.rollout.prompts_per_iteration
    )
    ids = encode(aside)
    evaluation = EncodedPrompts(
        list(range(len(aside))),
        [_text(tokenizer, prompt, i) for prompt, i in zip(aside, ids)],
        ids,
        [True] * len(aside),
    )
    contents = repr([[p.content for p in prompts] for prompts in (pool, aside)])
    return PromptSchedule(
        pool=pool,
        train=train,
        held_out=held_out,
        per_iteration=(config.rollout.prompts_per_iteration - per_held, per_held),
        evaluation=evaluation,
        encode=encode,
        text=functools.partial(_text, tokenizer),
        seed=config.seed,
        digest=hashlib.sha256(contents.encode()).hexdigest(),
    )


def _split(
    pool: list[Prompt], order: np.ndarray, config: Config
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the places that train and those held out; equal prompts stay together."""
    contents = list(dict.fromkeys(pool[i].content for i in order))
    sizes = Counter(pool[i].content for i in order)
    wanted, held = config.pairing.holdout_fraction * len(order), set()
    for n in np.random.default_rng([config.seed, 1]).permutation(len(contents)):
        if wanted <= 0:
            break
        held.add(contents[n])
        wanted -= sizes[contents[n]]
    is_held = np.array([pool[i].content in held for i in order], bool)
    return order[~is_held], order[is_held]


def _report_repeats(
    pool: list[Prompt], aside: list[Prompt], order: np.ndarray, console: RunConsole
) -> None:
    if repeats := duplicate_prompts(pool):
        console.note(f"{repeats:,} of {len(pool):,} prompts repeat an earlier one")
    known = {pool[i].content for i in order}
    if shared := sum(prompt.content in known for prompt in aside):
        console.note(f"{shared} of {len(aside)} evaluation prompts are trained on too")


def _check_counts(config: Config, pool: int, aside: int, train: int, held: int) -> None:
    source, wanted = config.data.prompts, config.evaluation.num_prompts
    if aside < 2:
        raise BadInput(
            f"{config.data.eval_prompts or source} holds {aside} evaluation prompts; "
            "give at least 2 different ones"
        )
    short = train < 1 or (config.data.eval_prompts is None and aside < wanted)
    if source is not None and short:
        raise BadInput(
            f"{source} holds {pool} prompts, of which {wanted} are wanted for "
            f"evaluation and {held} are held out; give more, set data.eval_prompts, or "
            "lower evaluation.num_prompts"
        )


def _text(tokenizer: Any, prompt: Prompt, ids: list[int]) -> str:
    """A text as it is; of messages, one line a turn; of ids, their text."""
    content = written(prompt.content)
    if isinstance(content, str):
        return content
    if content is None:
        return tokenizer.decode(ids, skip_special_tokens=True)
    return "\n".join(f"{m['role']}: {m['content']}" for m in as_dicts(content))
