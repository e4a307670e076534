"""Which prompts an iteration samples from: its own, drawn once from the seed."""

import hashlib
import pathlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tpmm_jax.config import Config
from tpmm_jax.data.answer_tokens import as_asked
from tpmm_jax.data.codec import TextCodec
from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.messages import Written, as_text, without_ids
from tpmm_jax.data.prepare import prepare_prompts, unread_text
from tpmm_jax.data.prompt_tokens import EncodedPrompt, encode_prompts
from tpmm_jax.data.prompts import Prompt, duplicate_prompts
from tpmm_jax.errors import BadInput
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop.prompt_functions import kept_file, prompt_file
from tpmm_jax.rewards import Known, Raters

# The name of a run's own evaluation prompts among the sets.
MAIN = "evaluation"
# The mean's answers to those prompts, where a run may ship it.
SHIPPED = "ship"
_SET = "evaluation.sets."


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts ready to be sampled from.

    Attributes:
      numbers: what each prompt's random keys are folded from; never twice in a run.
      texts: as a scorer sees them.
      asked: as another model reads them: texts, or messages where chat is on.
      ids: token ids.
      held_out: whether the prompt trains nothing.
      columns: values of the columns that a scorer asks for.
    """

    numbers: list[int]
    texts: list[str]
    asked: list[Written]
    ids: list[list[int]]
    held_out: list[bool]
    columns: Mapping[str, list[Any]] = field(default_factory=dict)

    def known(
        self,
        codec: TextCodec,
        places: Sequence[int],
        completions: Sequence[Sequence[Sequence[int]]],
    ) -> Known:
        """Returns what is known of answers beside their texts.

        Args:
          codec: of the policy that gave them.
          places: of their prompts.
          completions: of each prompt its answers' ids.
        """
        ended = [[codec.has_ended(ids) for ids in some] for some in completions]
        return Known(
            asked=[self.asked[i] for i in places],
            ended=ended,
            columns={k: [x[i] for i in places] for k, x in self.columns.items()},
            tokens=[[len(ids) for ids in some] for some in completions],
        )


@dataclass(frozen=True)
class PromptSchedule:
    """The prompts of every iteration and of the evaluation.

    What is held out is fixed for the run, by content, so that no checkpoint was ever
    trained on a held-out prompt, however often the pool is gone through.

    Attributes:
      train, held_out: places in the pool, in the order of their first use.
      per_iteration: how many of each an iteration takes.
      sets: the evaluation's prompts by name; the run's own are MAIN.
      digest: SHA-256 of the contents of the pool and of all that is evaluated on.
    """

    pool: Sequence[Prompt]
    train: np.ndarray
    held_out: np.ndarray
    per_iteration: tuple[int, int]
    sets: Mapping[str, EncodedPrompts]
    codec: TextCodec
    seed: int
    digest: str

    def iteration(self, iteration: int) -> EncodedPrompts:
        """Returns the prompts of iteration 1, 2, ...; a used-up pool starts again."""
        numbers, held_out = list[int](), list[bool]()
        streams = (self.train, self.held_out)
        for held, (stream, count) in enumerate(zip(streams, self.per_iteration)):
            for place in range((iteration - 1) * count, iteration * count):
                numbers.append(self._number(stream, place))
                held_out.append(bool(held))
        prompts = [self.pool[number % len(self.pool)] for number in numbers]
        encoded = encode_prompts(self.codec, prompts)
        return number_prompts(self.codec, prompts, encoded, numbers, held_out)

    def _number(self, stream: np.ndarray, place: int) -> int:
        """Returns a prompt's place in the pool, plus its size for every epoch before.

        Each epoch is reshuffled.
        """
        epoch, index = divmod(place, len(stream))
        if epoch > 0:
            stream = np.random.default_rng([self.seed, epoch]).permutation(stream)
        return epoch * len(self.pool) + int(stream[index])

    def longest(self, iterations: int) -> int:
        """Returns the tokens of the longest prompt; encodes, and so checks, all."""
        used = [prompts.ids for prompts in self.sets.values()]
        if self.pool:
            used += [self.iteration(t).ids for t in range(1, iterations + 1)]
        return max(len(ids) for prompts in used for ids in prompts)

    def asked(self, iterations: int) -> list[Written]:
        """Returns all prompts that the iterations sample from, as they are asked."""
        steps = range(1, iterations + 1) if self.pool else ()
        return [one for t in steps for one in self.iteration(t).asked]

    def uses(self, iterations: int) -> float:
        """Returns how often a training prompt is used on average."""
        return iterations * self.per_iteration[0] / max(len(self.train), 1)


def read_prompts(
    source: str,
    option: str,
    data: DataConfig,
    note: Callable[[str], None],
    *,
    auto_chat: bool = False,
    keep: Mapping[str, str] | None = None,
) -> list[Prompt]:
    """Returns the prompts of a source.

    Args:
      source: as ``data.prompts`` has it: a file, a saved dataset, a hub name or
        "module:function".
      option: the field or option that names it, for messages.
      data: how it is read.
      note: called with the columns that are not read.
      auto_chat: whether the data do not say if a chat template is used.
      keep: columns whose values every prompt keeps.
    """
    with tempfile.TemporaryDirectory() as folder:
        cache = pathlib.Path(folder) / "made.jsonl"
        file, data = prompt_file(source, option, data, cache)
        found = prepare_prompts(file, data, None, auto_chat=auto_chat, keep=keep)
    found.problems.settle()
    if found.unread:
        note(unread_text(source, found.unread))
    return found.prompts


def make_schedule(
    config: Config,
    codec: TextCodec,
    workdir: pathlib.Path,
    console: RunConsole,
    *,
    started: bool = False,
    raters: Raters | None = None,
) -> PromptSchedule:
    """Returns the schedule of a run.

    Args:
      started: whether it has begun: functions must return what they returned then.
      raters: whose columns the prompts keep.

    Raises:
      BadInput: too few prompts, or prompts that cannot be read or encoded.
    """
    raters, prompts = raters or Raters(), {}
    keep = raters.columns()
    for option, source, name in prompt_sources(config):
        cache = workdir / name
        if started:
            file = kept_file(source, option, config.data, cache, console.warn)
        else:
            file = prompt_file(source, option, config.data, cache)
        found = prepare_prompts(*file, codec, keep=keep)
        if found.problems.settle():
            console.warn(found.problems.left_out())
        if blank := found.counts["blank_lines"]:
            console.note(f"{source}: {blank:,} blank lines passed over")
        if begun := found.counts.get("continued"):
            console.note(
                f"{source}: {begun:,} prompts end with a message of the assistant, "
                "which the answers go on with"
            )
        if found.unread:
            unread = set(found.unread) - {*config.data.ignore_columns}
            raters.refuse_filled(unread, f"{option} = {source}")
            console.note(unread_text(source, found.unread))
        prompts[option] = found.usable
    return plan_schedule(config, codec, prompts, console)


def prompt_sources(config: Config) -> list[tuple[str, str, str]]:
    """Returns (option, source, file that a function's prompts are kept in) of each."""
    given = [
        ("data.prompts", config.data.prompts, "prompts.jsonl"),
        ("data.eval_prompts", config.data.eval_prompts, "eval_prompts.jsonl"),
    ]
    for name, source in sorted(config.evaluation.sets.items()):
        given.append((_SET + name, source, f"eval_prompts-{name}.jsonl"))
    return [(option, source, cache) for option, source, cache in given if source]


def plan_schedule(
    config: Config,
    codec: TextCodec,
    prompts: Mapping[str, Sequence[Prompt]],
    console: RunConsole,
) -> PromptSchedule:
    """Returns the schedule of prompts that can all be encoded.

    Evaluation prompts are those of data.eval_prompts, else set aside from the pool.

    Args:
      prompts: by the option of their source, see ``prompt_sources``.

    Raises:
      BadInput: too few prompts.
    """
    data, wanted = config.data, config.evaluation.num_prompts
    pool = list(prompts.get("data.prompts", ()))
    order = np.random.default_rng([config.seed, 0]).permutation(len(pool))
    if data.eval_prompts is not None:
        aside = list(prompts["data.eval_prompts"][:wanted])
    else:
        aside, order = [pool[i] for i in order[:wanted]], order[wanted:]
    train, held_out = _split(pool, order, config)
    _check_counts(config, len(pool), len(aside), len(train), len(held_out))
    asked = {MAIN: aside}
    for name, source in sorted(config.evaluation.sets.items()):
        asked[name] = list(prompts[_SET + name][:wanted])
        if len(asked[name]) < 2:
            raise BadInput(
                f"evaluation.sets.{name}: {source} holds {len(asked[name])} prompts; "
                "give at least 2 different ones"
            )
    _report_repeats(pool, asked, order, console)
    per_held = round(
        config.pairing.holdout_fraction * config.rollout.prompts_per_iteration
    )
    sets, first = {}, 0
    for name, some in asked.items():
        numbers = range(first, first + len(some))
        sets[name] = number_prompts(codec, some, encode_prompts(codec, some), numbers)
        first += len(some)
    return PromptSchedule(
        pool=pool,
        train=train,
        held_out=held_out,
        per_iteration=(config.rollout.prompts_per_iteration - per_held, per_held),
        sets=sets,
        codec=codec,
        seed=config.seed,
        digest=_digest(pool, asked),
    )


def number_prompts(
    codec: TextCodec,
    prompts: Sequence[Prompt],
    encoded: Sequence[EncodedPrompt],
    numbers: Iterable[int],
    held_out: list[bool] | None = None,
) -> EncodedPrompts:
    """Returns prompts with their numbers; those to evaluate on are all held out."""
    ids = [prompt.ids for prompt in encoded]
    texts = [_text(codec, prompt, i) for prompt, i in zip(prompts, ids)]
    asked = [as_asked(codec, prompt.content, i) for prompt, i in zip(prompts, ids)]
    held_out = held_out or [True] * len(ids)
    names = prompts[0].columns if prompts else ()
    columns = {name: [p.columns[name] for p in prompts] for name in names}
    return EncodedPrompts(list(numbers), texts, asked, ids, held_out, columns)


def _digest(pool: list[Prompt], asked: Mapping[str, list[Prompt]]) -> str:
    main, *further = ([name, [p.content for p in ps]] for name, ps in asked.items())
    contents = [[p.content for p in pool], main[1], *further]
    columns = [p.columns for ps in (pool, *asked.values()) for p in ps if p.columns]
    # Without columns the digest is what it was before there were any.
    whole = [contents, columns] if columns else contents
    return hashlib.sha256(repr(whole).encode()).hexdigest()


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
    pool: list[Prompt],
    sets: Mapping[str, list[Prompt]],
    order: np.ndarray,
    console: RunConsole,
) -> None:
    if repeats := duplicate_prompts(pool):
        console.note(f"{repeats:,} of {len(pool):,} prompts repeat an earlier one")
    known = {pool[i].content for i in order}
    for name, prompts in sets.items():
        if shared := sum(prompt.content in known for prompt in prompts):
            console.note(
                f"{shared} of {len(prompts)} {name} prompts are trained on too"
            )


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


def _text(codec: TextCodec, prompt: Prompt, ids: list[int]) -> str:
    """A text as it is; of messages, one line per turn; of ids, their text."""
    content = without_ids(prompt.content)
    return codec.decode(ids) if content is None else as_text(content)
