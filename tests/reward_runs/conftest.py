import pathlib
import sys

HERE = pathlib.Path(__file__).parent
# The tiny run's functions are named "tiny_run:...", those of this one "tiny_reward:...".
sys.path[:0] = [str(HERE), str(HERE.parent / "loop")]
