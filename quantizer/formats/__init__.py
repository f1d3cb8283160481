"""Rounded weights as checkpoints on disk hold them, in both directions: tensors in, tensors out, no files."""
