"""The command lines. Without an underscore: a command; with one: what it is made of.

dispatch is ``tpmm`` itself: it finds the command that was asked for. Every command
parses with ``_line.Parser`` and ends through ``_line.guarded``, which turns errors into
exit codes. Beside them:

  sample             _answers (one, streamed), _chat (many turns), _prompt_file
  merge_checkpoints  _merges (given weights), _learning (learned ones)
  check_data         _data_checks (one source), _data_run (a run's demands), _data_table
  upcycle, merge_experts   _experts_card
  export             _card (README.md of a model), _peft (adapters)
"""
