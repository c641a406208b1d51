"""Which warnings are errors (see `pytest_configure` in conftest.py): those of our own making, on any release of a dependency."""

from __future__ import annotations

import warnings

import pytest


@pytest.mark.parametrize("module", ["ldm", "ldm.training.engine", "test_engine", "conftest", "tasks", "solvers", "train_ldm"])
def test_what_points_at_our_code_is_an_error(module):
    with pytest.raises(DeprecationWarning):
        warnings.warn_explicit("is deprecated", DeprecationWarning, "file.py", 1, module=module)


def test_a_call_of_ours_to_what_is_deprecated_is_an_error():
    def deprecated():
        warnings.warn("use another", FutureWarning, stacklevel=2)

    with pytest.raises(FutureWarning):
        deprecated()


@pytest.mark.parametrize("module", ["torch._dynamo.guards", "diffusers.models.unets", "ldmlib", "tasks_of_another"])
def test_what_a_dependency_says_of_itself_is_none(module):
    with warnings.catch_warnings(record=True) as said:
        warnings.warn_explicit("guards may run slower", UserWarning, "file.py", 1, module=module)
    assert len(said) == 1
