"""Stage server: one device, one slice of a model, one compute thread; a thin servicer on top."""
