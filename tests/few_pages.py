"""Runs that draw little: their pages take longer than all else of a tiny, warm run.

A test module (or conftest.py) imports a fixture; what a page says and shows is
tests/report's.
"""

from collections.abc import Iterator

import pytest
from markupsafe import Markup
from matplotlib.figure import Figure

from tpmm_jax import iterate
from tpmm_jax.loop.run import Run
from tpmm_jax.report import figures


@pytest.fixture(scope="module", autouse=True)
def few_pages() -> Iterator[None]:
    """Draws the first finished run of a module, and no other."""
    draw, drawn = iterate.draw, []

    def draw_first(run: Run) -> None:
        last = run.plan.config.iterations
        if not drawn and run.disk.next_iteration(last) > last:
            drawn.append(run)
            draw(run)
            assert (run.disk.workdir / "report.html").exists()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(iterate, "draw", draw_first)
        yield


@pytest.fixture(scope="module", autouse=True)
def empty_plots() -> Iterator[None]:
    """Leaves the pages' plots empty: they are prepared, but not drawn as SVG."""

    def finished(figure: Figure) -> Markup:
        return Markup('<svg viewBox="0 0 1 1"></svg>')

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "finished", finished)
        yield
