"""Prompts and preference pairs: read strictly, encoded, batched with their masks.

sources reads rows, prompts and pairs what they mean, problems gathers what is wrong;
codec turns texts into token ids, prepare does all of it for one source; records,
batches and table hold the results. Modules with an underscore serve these alone.
"""
