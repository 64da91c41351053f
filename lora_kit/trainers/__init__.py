"""What other programs do with the same words."""
