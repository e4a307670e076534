"""What a run tells: metric rows, the console, plots.

Nothing here computes; metrics.jsonl is the only source that plots and tables read.
"""
