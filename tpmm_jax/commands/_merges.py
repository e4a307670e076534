"""From names of checkpoints to their merge, by given or by learned weights."""

import pathlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from tpmm_jax.axes import Params
from tpmm_jax.commands._learning import Learned, Split, held_out_sets, learn_weights
from tpmm_jax.errors import BadInput
from tpmm_jax.facade import codec_of, merge_remarks
from tpmm_jax.log.console import RunConsole
from tpmm_jax.merging import (
    FAINT,
    Deltas,
    ReferenceConfig,
    faint_text,
    group_names,
    one_hot,
    signal_to_rounding,
    weighted_sum,
)
from tpmm_jax.models import Decoder, ModelConfig
from tpmm_jax.store import tree_digest
from tpmm_jax.weights.architecture import check_same_architecture
from tpmm_jax.weights.hub import TRAJECTORY
from tpmm_jax.weights.huggingface import write_params
from tpmm_jax.weights.kept import committed_steps, run_workdir
from tpmm_jax.weights.loading import resolve_any
from tpmm_jax.weights.merged_files import merge_files
from tpmm_jax.weights.names import count_tensors
from tpmm_jax.weights.source import Source

RANGE = re.compile(
    r"(?P<workdir>.*/)?(?P<kept>trajectory|reward)@(?P<first>\d+)\.\.(?P<last>\d+)"
)


@dataclass
class Merged:
    """What merge.json says of a merge.

    Attributes:
      digests: of the models.
      digest: of the merge.
      ratios: signal to rounding by dtype.
    """

    weights_GK: np.ndarray
    digests: list[str]
    digest: str
    ratios: dict[str, float]
    learned: Learned | None = None


def expand(names: Sequence[str]) -> list[str]:
    """Returns one name per model: workdirs and ranges are written out.

    Raises:
      BadInput: a range with steps that the run does not have, or fewer than two models.
    """
    found: list[str] = []
    for name in names:
        if match := RANGE.fullmatch(name):
            workdir, kept = pathlib.Path(match["workdir"] or "."), match["kept"]
            wanted = list(range(int(match["first"]), int(match["last"]) + 1))
            steps = committed_steps(workdir, kept)
            if not wanted or set(wanted) - set(steps):
                raise BadInput(f"{name}: {workdir}/{kept} holds the steps {steps}")
        elif (run := run_workdir(pathlib.Path(name))) is not None:
            workdir, kept, wanted = run, TRAJECTORY, committed_steps(run)
        else:
            found.append(name)
            continue
        found += [f"{workdir}/{kept}@{step}" for step in wanted]
    if len(found) < 2:
        raise BadInput(
            f"{' '.join(names)} is {len(found)} model; a merge needs two or more (to "
            "write one as a Hugging Face directory: tpmm export)"
        )
    return found


def open_sources(
    names: Sequence[str], base: str | None, console: RunConsole
) -> list[Source]:
    """Returns every model's description, checked to be of one architecture.

    Args:
      base: the model under the PEFT adapters among them.
    """
    sources = resolve_any(names, base)
    first = sources[0]
    for name, source in zip(names[1:], sources[1:]):
        check_same_architecture(first.config, source.config, name, names[0])
        for remark in merge_remarks(first, source, name, names[0]):
            console.warn(remark)
    return sources


@dataclass(frozen=True)
class Target:
    """Where a merge is written, and in which dtype."""

    directory: pathlib.Path
    dtype: str

    def write(self, params: Params, config: ModelConfig) -> None:
        """Writes the weights alone."""
        params = jax.tree.map(lambda x: x.astype(self.dtype), params)
        write_params(params, config, self.directory)


def merge_given(
    sources: Sequence[Source],
    weights: Sequence[float],
    decoder: Decoder,
    target: Target,
    console: RunConsole,
) -> Merged:
    """Writes a merge by given weights: of files block by block, or model by model."""
    opens = [source.tensors for source in sources]
    if None not in opens:
        tensors = [open_tensors() for open_tensors in opens if open_tensors is not None]
        with console.phase("merge", count_tensors(decoder.config), "tensors") as bar:
            files = merge_files(
                tensors,
                weights,
                decoder,
                target.directory,
                target.dtype,
                advance=lambda: bar.advance(1),
            )
        weights_GK = np.asarray([weights])
        return Merged(weights_GK, files.digests, files.digest, files.ratios)
    return _merge_whole(sources, weights, decoder, target, console)


def _merge_whole(
    sources: Sequence[Source],
    weights: Sequence[float],
    decoder: Decoder,
    target: Target,
    console: RunConsole,
) -> Merged:
    """As ``merge_given``, one model in memory beside theta_0 and the sum."""
    base: Params = {}
    digests: list[str] = []

    with console.phase("merge", len(sources), "models") as bar:

        def models() -> Iterator[Params]:
            for source in sources:
                params = source.read(decoder, "float32")
                if not digests:
                    base.update(params)
                digests.append(tree_digest(params))
                yield params
                bar.advance(1)

        merged, ratio = weighted_sum(models(), weights)
    half = signal_to_rounding(merged, base, "bfloat16")
    base.clear()
    target.write(merged, decoder.config)
    ratios = {"float32": ratio, "bfloat16": half}
    return Merged(np.asarray([weights]), digests, tree_digest(merged), ratios)


def warn_if_faint(console: RunConsole, ratio: float, lost: str, change: str) -> None:
    """Warns where a cast to bfloat16 would undo a change; 0 is no change."""
    if 0 < ratio < FAINT:
        instead = "use --dtype float32"
        console.warn(faint_text(ratio, "bfloat16", lost, change, instead))


def merge_learned(
    sources: Sequence[Source],
    names: Sequence[str],
    rows: Split,
    decoder: Decoder,
    config: ReferenceConfig,
    target: Target,
    *,
    seed: int,
    console: RunConsole,
) -> Merged:
    """Writes a merge by weights that it learns on the pairs.

    The models lie as deltas in files beside the target meanwhile.

    Args:
      config: of the rule "learned".
    """
    groups = group_names(decoder.abstract_params("float32"), config.granularity)
    digests: list[str] = []
    beside = target.directory.parent
    with tempfile.TemporaryDirectory(dir=beside, prefix=".merging-") as scratch:
        with console.phase("read", len(sources), "models") as bar:

            def restore(k: int) -> Params:
                params = sources[k].read(decoder, "float32")
                digests.append(tree_digest(params))
                bar.advance(1)
                return params

            folder = pathlib.Path(scratch) / "deltas"
            deltas = Deltas(folder, restore, len(sources), groups)
        with deltas:
            pad = codec_of(sources[0]).pad_id
            sets = held_out_sets(
                deltas, decoder, rows, config, pad=pad, seed=seed, console=console
            )
            learned = learn_weights(deltas, rows, sets, config, names, console)
            merged = deltas.merge(learned.weights_GK)
            base = deltas.merge(one_hot(len(groups), len(sources), 0))
    dtypes = ("float32", "bfloat16")
    ratios = {dtype: signal_to_rounding(merged, base, dtype) for dtype in dtypes}
    target.write(merged, decoder.config)
    digest = tree_digest(merged)
    return Merged(learned.weights_GK, digests, digest, ratios, learned)
