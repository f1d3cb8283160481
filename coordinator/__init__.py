"""Coordinator: membership, jobs, scheduling, the pipeline loop; a thin servicer on top."""
