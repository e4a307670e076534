"""plots/reward.png: a run's reward, drawn as on its page but by itself."""

import os
import pathlib
from collections.abc import Mapping, Sequence

from tpmm_jax.errors import BadInput
from tpmm_jax.report.figures import draw_curves, plot, printable
from tpmm_jax.report.gather import Row, RunData
from tpmm_jax.report.panels import curve
from tpmm_jax.store.files import write_file

_WIDTH, _HEIGHT = 720, 448
_DPI = 90  # at 72 a unit is a pixel
# Around the picture, in inches.
_MARGIN = 0.15
_FORMATS = (".png", ".svg", ".pdf")


def plot_reward(
    runs: Mapping[str, Sequence[Row]], path: str | os.PathLike[str]
) -> pathlib.Path:
    """Plot mean reward by iteration with its interval, one line per run; atomic write.

    Args:
        runs: label, such as the merge rule, -> rows as read_metrics gives them. Rows of
            kind "iteration" with reward/mean count; iteration 0 is theta_0. Their
            interval is reward/low to reward/high, where a row has them.
        path: ends in .png (900 x 560), .svg or .pdf; its folder is made.

    Returns:
        The path.

    Raises:
        BadInput: another file type, or no run has a reward to draw.
        StorageError: the disk refuses.
    """
    path = pathlib.Path(path)
    if path.suffix not in _FORMATS:
        raise BadInput(
            f"cannot draw {path}: the name ends in {path.suffix!r}; wanted one of "
            f"{', '.join(_FORMATS)}. Rename the plot"
        )
    read = [RunData(pathlib.Path(k), k, metrics=rows) for k, rows in runs.items()]
    curves = [
        found for run in read if (found := curve(run, "reward/mean", run.label)).x
    ]
    if not curves:
        raise BadInput(
            f"nothing to draw in {path}: none of the runs {list(runs)} has a row of "
            "kind 'iteration' with a finite reward/mean. Let an iteration finish first"
        )
    with plot(_HEIGHT, _WIDTH) as (figure, axes):
        figure.set_layout_engine("constrained", w_pad=_MARGIN, h_pad=_MARGIN)
        draw_curves(axes, curves)
        axes.set_title("mean reward, 95 % intervals", loc="left", pad=12)
        shown = [printable(c.label) for c in curves]
        names = [name if len(name) <= 20 else f"{name[:19]}…" for name in shown]
        figure.legend(
            axes.get_lines(), names, loc="outside right upper", frameon=False,
            ncols=1 + len(names) // 26,
        )  # fmt: skip
        write_file(
            path,
            lambda file: figure.savefig(
                file, format=path.suffix[1:], dpi=_DPI, facecolor="white"
            ),
        )
    return path
