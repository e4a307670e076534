"""The phases of one iteration. Each reads what is on disk, does what is missing,
and leaves its result on disk: running the same command again continues."""
