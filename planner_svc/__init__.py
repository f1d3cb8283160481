"""Planner: cost models, search, strategies; a thin servicer on top."""
