"""Where the rewards' margins of pairs come from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tpmm_jax.errors import BadInput

# The field of a run's config that names the margins' source, and its label in a line of
# rollouts.jsonl.
MARGINS, LABEL = "madpo.margins", "margins"
# The source that is a column of the offline pairs.
COLUMN = "column"


@dataclass(frozen=True, kw_only=True)
class MadpoConfig:
    """Where the margins come from by which pairs are weighed, dropped or relabelled.

    Attributes:
      margins: "module:function", a scorer whose rewards' difference is the margin;
        "reward:SOURCE", a reward model; "judge:SOURCE", a model that compares; or
        "column", the margins of data.pairs. None: no margins.
      options: keyword arguments that the function is called with.
      calibrate: divide the margins by a temperature that iteration 1's held-out pairs
        give, so that sigma(margin) is the chance of their labels. It is fixed for the
        run.
    """

    margins: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    calibrate: bool = True

    def validate(self) -> None:
        """Raises BadInput for options of a source that has none."""
        if self.options and self.margins in (None, COLUMN):
            what = "is not set" if self.margins is None else "is a column"
            raise BadInput(
                f"madpo.options are arguments of a function, and madpo.margins {what}; "
                "leave them unset"
            )
        if self.margins is None and not self.calibrate:
            raise BadInput(
                "madpo.calibrate=false without madpo.margins: there is nothing to "
                "calibrate; leave it unset"
            )
