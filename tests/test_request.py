"""Requests: users' arguments checked, with every default filled in."""

from __future__ import annotations

import pytest

from bark_fast import GenerationParams, InputError
from bark_fast.request import Request
from helpers.checkpoints import Checkpoint


def test_given_tokens_have_passed_the_first_stage(small: Checkpoint) -> None:
    params, message = GenerationParams(), "one of coarse, fine, codec, got 'semantic'"
    with pytest.raises(InputError, match=f"last_stage must be {message}"):
        Request.resolve("", [], None, params, small.config, given=[1], last_stage="semantic")
