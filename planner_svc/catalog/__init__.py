"""Devices, kernels, models and clusters that are data: what a plan without hardware or weights is made from.

Whatever comes from here is simulated, and says so.
"""
