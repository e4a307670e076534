"""What is printed before a run starts."""

import pathlib
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from tpmm_jax.config import Config, ModelSource, make_decoder
from tpmm_jax.log.console import RunConsole
from tpmm_jax.models.advice import mesh_advice
from tpmm_jax.weights.source import Source


def show_header(
    console: RunConsole,
    config: Config,
    source: Source,
    mesh: Mesh,
    workdir: pathlib.Path,
    need: int,
    lengths: Sequence[int],
    num_prompts: int,
) -> None:
    """Prints what is about to run.

    Args:
      need: bytes of the disk.
      lengths: that pairs are padded to, tokens.
      num_prompts: of the evaluation; fewer than were asked for if there are no more.
    """
    labels = "offline" if config.offline else f"labelled by {config.scorer.title}"
    if config.pairing.labels == "bt":
        labels += ", drawn by Bradley and Terry's chance"
    rule = config.reference.rule
    if rule == "learned":
        rule += f", {config.reference.granularity} weights, "
        rule += config.reference.objective
    rows = [
        *model_rows(config.model, source, mesh),
        ("data", f"{config.data.prompts or config.data.pairs}, {labels}"),
        ("evaluation", evaluation_text(config, num_prompts)),
        ("reference", rule),
        (
            "training",
            f"{config.loss.title}, beta {config.loss.beta:g}, "
            f"{config.train.batch_size} pairs per step padded to "
            f"{lengths_text(lengths)}, learning rate {config.train.learning_rate:g}",
        ),
        ("workdir", f"{workdir}, will hold up to {need / 1e9:.2f} GB"),
    ]
    if noise := config.pairing.flip_probability:
        rows.insert(5, ("noise", f"{noise:.0%} of the labels are flipped on purpose"))
    if config.madpo.margins is not None:
        rows.insert(3, ("margins", _margins_text(config)))
    advice = mesh_advice(mesh, source.config, config.batch_sizes)
    if idle := config.reference.idle:
        names = " and ".join(f"reference.{name}" for name in idle)
        advice.append(
            f"reference.rule is {config.reference.rule!r}: nothing reads {names}, as "
            "learned would"
        )
    rows += [("note", text) for text in advice]
    count = config.iterations
    plural = "" if count == 1 else "s"
    console.header(f"tpmm_jax: {count} iteration{plural} of DPO", rows)


def lengths_text(lengths: Sequence[int]) -> str:
    """Returns such as "128, 384 or 1024 tokens".

    >>> lengths_text((128, 384, 1024))
    '128, 384 or 1024 tokens'
    """
    *shorter, longest = map(str, lengths)
    either = f"{', '.join(shorter)} or " if shorter else ""
    return f"{either}{longest} tokens"


def model_rows(model: ModelSource, source: Source, mesh: Mesh) -> list[tuple[str, str]]:
    """Returns what is trained, and on which devices."""
    origin = model.source
    if "commit" in source.origin:
        origin += f" at {source.origin['commit'][:12]}"
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    kind = jax.devices()[0].device_kind
    decoder = make_decoder(model, source.config, mesh)
    size = f"{decoder.num_params / 1e6:,.1f} M parameters"
    devices = f"{mesh.devices.size} x {kind}, mesh {shape}, {model.compute_dtype}"
    if decoder.flash:
        devices += ", attention by cuDNN"
    return [
        ("model", f"{origin}: {source.config.family}, {size}"),
        ("devices", devices),
    ]


def _margins_text(config: Config) -> str:
    """Returns where margins come from and what reads them."""
    uses = ["weigh the pairs"] if config.loss.needs_margins else []
    rules = {"drop": "drop some", "relabel": "relabel some"}
    uses += [rules[config.pairing.margins]] if config.pairing.margins in rules else []
    return f"of {config.madpo.margins}: {' and '.join(uses)}"


def evaluation_text(config: Config, num_prompts: int) -> str:
    """Returns what every policy is evaluated on, and what is not looked at."""
    settings = config.evaluation
    held_out = "held-out pairs" if config.pairing.holdout_fraction else ""
    if config.offline and config.data.eval_prompts is None:
        return (
            f"{held_out or 'none'}; nothing is sampled, so the reward-hacking watch "
            "looks at nothing (data.eval_prompts changes that)"
        )
    text = f"{num_prompts} prompts, {settings.samples_per_prompt} samples each"
    if settings.samples_per_prompt == 1:
        text = text.replace("samples", "sample")
    text += f", and {held_out}" if held_out else ""
    if num_prompts < settings.num_prompts:
        text += f"; evaluation.num_prompts asks for {settings.num_prompts}"
    if config.scorer.name is None:
        text += "; no scorer, so no reward"
    return text
