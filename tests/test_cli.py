"""What every command shares: expected errors are one line, a closed pipe is none at all."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from speech import cli

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("two\nlines"), "error: two lines"),
        (OSError(13, "Permission denied", "x.wav"), "error: x.wav: Permission denied"),
        (MemoryError(), "error: not enough memory"),
        (KeyboardInterrupt(), "error: interrupted"),
    ],
)
def test_expected_errors_are_one_line(error, message, capsys):
    def command():
        raise error

    assert cli.run(command) == 1
    assert capsys.readouterr().err.strip() == message


def test_our_own_mistakes_keep_their_traceback():
    def command():
        raise TypeError("a bug")

    with pytest.raises(TypeError):
        cli.run(command)


def test_a_reader_that_has_seen_enough_is_no_error():
    code = (
        "import sys; from speech import cli\n"
        "def command():\n"
        "    for _ in range(100000): print('x' * 100)\n"
        "    return 0\n"
        "sys.exit(cli.run(command))"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    writer.stdout.readline()
    writer.stdout.close()
    assert writer.stderr.read() == b""
    assert writer.wait() == 0
    writer.stderr.close()


def test_a_full_disk_is_told_in_plain_words():
    text = cli.one_line(OSError(errno.ENOSPC, "Can't write data (file write failed: buf = 0x5)"))
    assert text == "No space left on device; make room and repeat the command: it goes on"
    assert cli.one_line(OSError(errno.EFBIG, "x", "a.h5")).startswith("a.h5: File too large; make")
