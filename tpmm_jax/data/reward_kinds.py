"""What a source of a reward model's pairs holds: pairs, ratings or a run's rollouts."""

import pathlib

from tpmm_jax.data._row_shapes import ANSWER_COLUMNS
from tpmm_jax.data.problems import Problems
from tpmm_jax.data.ratings import NUMBERS, is_text
from tpmm_jax.data.reward_config import Kind, RewardDataConfig
from tpmm_jax.data.sources import read_rows
from tpmm_jax.errors import BadInput


def find_kind(source: str, data: RewardDataConfig) -> Kind:
    """Returns the kind of a further source, by its files and columns.

    Args:
      data: of the training pairs; the columns that it names count too.

    Raises:
      BadInput: no such source, or lines of text whose cells nothing names.
    """
    if any(pathlib.Path(source).expanduser().glob("iterations/*/rollouts.jsonl")):
        return "rollouts"
    if is_text(source) and data.kind != "ratings":
        raise BadInput(
            f"{source}: lines of text have no columns, and data.columns, which names "
            "some, concerns data.ratings; give .jsonl, .csv or .tsv"
        )
    # What is wrong with rows is said by the reader of their kind.
    rows = read_rows(source, split=data.split, problems=Problems(source))
    columns = {column for row in rows for column in row.data}
    named = {data.fields[part] for part in ("chosen", "rating") if part in data.fields}
    if is_text(source) or named & columns:
        return "pairs" if data.kind == "pairs" else "ratings"
    if columns & {"chosen", *ANSWER_COLUMNS}:
        return "pairs"
    rated = columns & {*NUMBERS} or data.kind == "ratings"
    return "ratings" if rated else "pairs"
