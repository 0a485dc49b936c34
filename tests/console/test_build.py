"""The console that is committed is the one that its sources make."""

import shutil

import pytest

from tests.console.build_stamp import CONSOLE, is_up_to_date


def test_the_built_console_is_that_of_its_sources():
    assert is_up_to_date(CONSOLE), (
        "api/console/web or api/snippets has changed since dist was built: run `make console` and commit both"
    )


@pytest.mark.parametrize(
    "changed", ["web/src/App.svelte", "dist/index.html", "dist/build.json", "../snippets/comfyui.json"]
)
def test_any_other_byte_is_noticed(tmp_path, changed):
    copy = shutil.copytree(CONSOLE, tmp_path / "console", ignore=shutil.ignore_patterns("node_modules"))
    shutil.copytree(CONSOLE.parent / "snippets", tmp_path / "snippets")
    assert is_up_to_date(copy)
    path = copy / changed
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    assert not is_up_to_date(copy)
