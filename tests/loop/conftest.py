import pathlib
import sys

# The tiny run's functions are named "tiny_run:...".
sys.path.insert(0, str(pathlib.Path(__file__).parent))

from few_pages import empty_plots, few_pages  # noqa: F401
