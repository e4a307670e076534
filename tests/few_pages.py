"""Runs that draw no report.html: it takes longer than all else of a tiny, warm run.

A test module (or conftest.py) imports the fixture; what a page says is tests/report's.
"""

from collections.abc import Iterator

import pytest

from tpmm_jax import iterate
from tpmm_jax.loop.run import Run


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
