"""What a run says: on the terminal, and in the files of metrics beside it."""
