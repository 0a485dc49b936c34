from __future__ import annotations

import re

from duolora import errors
from duolora.errors import DuoLoraError, Fault


def all_errors() -> list[type[DuoLoraError]]:
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DuoLoraError)]


def test_every_error_has_a_code_of_its_own_that_machines_can_read() -> None:
    codes = [kind.code for kind in all_errors()]

    assert len(codes) == len(set(codes)) == 10
    assert all(re.fullmatch(r"[a-z_]+", code) for code in codes)


def test_only_errors_of_the_environment_may_be_tried_again() -> None:
    faults = {kind.__name__: kind.fault for kind in all_errors()}

    assert faults == {
        "DuoLoraError": Fault.INFRASTRUCTURE,
        "InvalidConfig": Fault.CALLER,
        "InvalidImage": Fault.CALLER,
        "InvalidLora": Fault.CALLER,
        "InvalidBase": Fault.INFRASTRUCTURE,
        "LayerGroupEmpty": Fault.CALLER,
        "TrainingDiverged": Fault.CALLER,
        "OutOfMemory": Fault.MEMORY,
        "CheckpointUnusable": Fault.INFRASTRUCTURE,
        "Cancelled": Fault.CANCELLED,
    }
