"""What a run writes: its folder, the LoRA's file, metrics and checkpoints, and how a later run resumes."""
