"""Prompts and preference pairs: read strictly, encoded, batched with their masks.

sources -> prompts, pairs -> tokens; each module's docstring says what it promises.
"""
