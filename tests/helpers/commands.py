"""Running `mmdit` inside the test's process."""

import pytest

from mmdit.tools.cli import main


def exit_code(*words: object) -> int:
    """The exit code of `mmdit WORDS`."""
    with pytest.raises(SystemExit) as ending:
        main([*map(str, words)])
    assert isinstance(ending.value.code, int)
    return ending.value.code
