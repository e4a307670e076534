import pathlib
import sys

HERE = pathlib.Path(__file__).parent
# The functions of the two tiny runs are named "tiny_run:..." and "tiny_reward:...".
sys.path[:0] = [str(HERE), str(HERE.parent / "loop")]

from few_pages import empty_plots  # noqa: E402, F401
