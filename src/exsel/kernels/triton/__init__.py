"""Triton kernels and their launchers: plain functions on checked tensors, which know nothing of autograd.

``TRITON_INTERPRET=1`` in the environment before the first import runs them on the CPU, slowly, as the tests do.
"""
