"""Triton kernels. Importing one needs Triton; TRITON_INTERPRET=1 set before runs them on the CPU, slowly.

Everywhere N is output channels, K input channels, M rows (tokens). Products are computed transposed, weight times
activations, because tensor cores take the operand that was made in registers on the left. Offsets that grow with a
whole matrix are int64. Numbers of rows are not specialized on, so that another number does not compile another kernel.
"""
