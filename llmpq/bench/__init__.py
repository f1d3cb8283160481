"""Measurements that `llmpq bench` takes: of this mesh, of its parts, and of other systems on the same work."""
