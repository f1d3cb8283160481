"""Quantizer: the precisions as code. Knows torch; knows nothing of gRPC or asyncio."""
