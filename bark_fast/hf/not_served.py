"""The reason for which a call does not run on the engine."""

from __future__ import annotations


class NotServedError(Exception):
    """Says what keeps a call from running on the engine, in words that follow "because".

    `BarkModel.generate` leaves such a call to transformers' own code. It never reaches users.
    """
