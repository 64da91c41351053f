"""Captioned pictures: from a style, a folder or the Hub to the batches that a training loop reads."""
