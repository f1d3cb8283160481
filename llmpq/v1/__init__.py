"""The contract in Python: generated from protos/llmpq/v1 by `make protos`."""
