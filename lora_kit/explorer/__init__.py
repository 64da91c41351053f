"""The explorer: turn a knob of the training configuration and see at once what it does."""
