"""Fast paths, private: one module a backend, each with the functions of :mod:`exsel.reference` that it has.

A module here imports torch and nothing of exsel: :mod:`exsel.functional` checks the arguments and chooses among
them, and the tests hold each against the float64 reference.
"""
