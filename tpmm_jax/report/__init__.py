"""report.html and the plots: what is shown of a run, read from its files alone."""
