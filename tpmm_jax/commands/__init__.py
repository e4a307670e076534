"""What the command lines are made of: arguments, errors, chat, files, the card."""
