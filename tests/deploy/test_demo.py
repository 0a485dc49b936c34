"""`duolora demo`, interrupted; the whole demo runs in `.ci/run`."""

import signal

import pytest

from tests.support.duolora_command import duolora
from tests.support.process_list import naming, wait_until_gone

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.timeout(120)]


def test_ctrl_c_in_the_middle_of_a_job_leaves_no_process_and_no_lock(tmp_path):
    data = tmp_path / "data"
    with duolora("demo", f"--data={data}", f"--out={tmp_path}/out", output=tmp_path / "demo.txt") as command:
        command.wait_for("learning")
        family = command.family()
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(40) == 130
        assert "stopped" in command.text()
        assert "Traceback" not in command.text()
        wait_until_gone(family)
    assert naming(str(data)) == []
    assert not (data / "lock").exists()
    assert not (tmp_path / "out").exists()
