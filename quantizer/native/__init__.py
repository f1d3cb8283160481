"""Kernels in C++ for CPUs with x86-64 instruction sets, called through ctypes; absent where they could not be built."""
