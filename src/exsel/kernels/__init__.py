"""Fast paths, private: raw functions on checked tensors, and the operators that give them gradients.

A module here imports torch and nothing of exsel beyond this package: :mod:`exsel.functional` checks the arguments and
:mod:`exsel.dispatch` chooses, and the tests hold each path against the float64 reference.
"""
