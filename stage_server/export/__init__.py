"""Writes a model as a checkpoint that other software loads, with the weights that a mesh would serve."""
