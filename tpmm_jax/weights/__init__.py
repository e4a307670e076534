"""From the name of a model to weights, config and tokenizer; and back to a folder."""
