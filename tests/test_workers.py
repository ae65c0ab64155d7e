"""How the tests are spread over several workers."""

from __future__ import annotations

import pytest


@pytest.mark.xdist_group("together")
def test_a_group_of_tests_stays_together(request):
    """The worker tells the group by the end of the test's name. A pytest that keeps names as they
    are has every group mixed without a word: what a module starts once is then started by each
    worker.
    """
    if getattr(request.config.option, "loadgroup", False):
        assert request.node.nodeid.endswith("@together")
