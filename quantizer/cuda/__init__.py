"""Linear layers on CUDA devices by Triton kernels: weights read as they are stored, int8 products on tensor cores."""
