"""``exsel bench``: what the mechanisms cost, as ratios to stock attention measured in turn in one process.

``cases`` (what is measured), ``timing`` (how one pass is), ``measuring`` (rounds of contenders), ``plain_forms`` (what
people write by hand), a module for each subject (``attention``, ``decode``, ``block``, ``step``), ``table`` and
``picture`` (what is shown).
"""
