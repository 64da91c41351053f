"""What other programs do with the same words: a file a program, each read from its code and written anew as formulas."""
