"""Fast paths, private: the projection in PyTorch, C++ and Triton, and the operators that give it gradients.

A module here imports torch and, of exsel, only :mod:`exsel.reference` and this package. :mod:`exsel.functional` checks
the arguments and :mod:`exsel.dispatch` chooses; the tests hold each path against the float64 reference.
"""
