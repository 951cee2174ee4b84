"""What can come of a model type."""

from __future__ import annotations

from typing import Literal

Outcome = Literal["verified", "partly", "refused", "no attention", "not built", "wrong"]

#: What each outcome says, in the order in which they are shown.
OUTCOMES: dict[Outcome, str] = {
    "verified": "upgraded with both mechanisms and verified",
    "partly": "verified, with some layers or one mechanism refused",
    "refused": "refused by name, before anything is changed",
    "no attention": "has no attention",
    "not built": "no small model of it can be built and called here",
    "wrong": "upgraded and wrong",
}
