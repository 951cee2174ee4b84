"""How we know what exsel claims: run from a clone, and not part of the package."""
