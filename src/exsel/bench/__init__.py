"""``exsel bench``: what the mechanisms cost, as ratios to stock attention measured in turn in one process.

``cases`` (what is measured), ``measuring`` (rounds of contenders, and their clocks), ``attention`` and ``models`` (the
contenders), ``session`` (all cases, into one record), ``table`` and ``pictures`` (what is shown).
"""
