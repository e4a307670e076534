"""A run of tpmm train_reward: its data, its training, its measures."""
