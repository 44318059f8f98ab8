"""The tests of the kernels prepare small weights, which the rule itself leaves as they are."""

import pytest

from zoo.kernel import packed


@pytest.fixture(autouse=True)
def _small_weights_are_prepared(monkeypatch):
    monkeypatch.setattr(packed, "WEIGHTS", 2**15)
