"""Which scope includes which."""

import pytest

from api.accounts.scopes import Scope, missing, tidy


@pytest.mark.parametrize(
    ("held", "wanted", "lacking"),
    [
        (["jobs:read"], ["jobs:read"], []),
        (["jobs:write"], ["jobs:read"], []),
        (["jobs:read"], ["jobs:write"], ["jobs:write"]),
        (["loras:write"], ["jobs:read"], ["jobs:read"]),
        (["admin"], ["webhooks:write"], []),
        (["jobs:write", "loras:write"], ["admin"], ["admin"]),
        (["of a later version"], ["jobs:read"], ["jobs:read"]),
        ([], ["jobs:read"], ["jobs:read"]),
    ],
)
def test_a_scope_to_write_includes_the_one_to_read_and_admin_all(held, wanted, lacking):
    assert missing(held, wanted) == lacking


def test_what_names_no_scope_is_for_admins():
    assert missing(["jobs:write"], []) == ["admin"]
    assert missing(["admin"], []) == []


def test_scopes_are_kept_in_order_without_those_that_others_include():
    assert tidy([Scope.LORAS_READ, Scope.JOBS_WRITE, Scope.JOBS_READ]) == ["jobs:write", "loras:read"]
    assert tidy(Scope) == ["admin"]
