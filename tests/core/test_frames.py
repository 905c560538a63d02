"""The last line of code, from what real crashes write."""

from __future__ import annotations

import subprocess
import sys

import pytest

from deploykit.frames import frame_in_dump, frame_of, shorten


@pytest.mark.parametrize(
    ("path", "short"),
    [
        ("/e/lib/python3.11/site-packages/torch/onnx/x.py", "torch/onnx/x.py"),
        ("/usr/lib/python3/dist-packages/numpy/x.py", "numpy/x.py"),
        ("/usr/lib/python3.12/ctypes/__init__.py", "ctypes/__init__.py"),
        ("/e/lib/python3.11/site-packages/deploykit/_plugins/targets/ort/plugin.py", None),
        ("/home/u/checkout/converters/caffe2/plugin.py", "converters/caffe2/plugin.py"),
        ("/home/u/model.py", "/home/u/model.py"),
        ("<string>", "<string>"),
    ],
)
def test_a_path_is_shortened_to_what_a_reader_knows(path: str, short: str | None) -> None:
    assert shorten(path) == (short or "deploykit/_plugins/targets/ort/plugin.py")


def test_the_frame_of_an_exception_is_its_innermost() -> None:
    def deep() -> None:
        raise LookupError

    with pytest.raises(LookupError) as caught:
        deep()
    assert frame_of(caught.value).endswith(f"{deep.__code__.co_firstlineno + 1} in deep")
    assert frame_of(ValueError("never raised")) == ""


CRASH = """
import ctypes, threading, time
def other():
    time.sleep(60)
def guilty():
    ctypes.string_at(0)
threading.Thread(target=other, daemon=True).start()
time.sleep(0.1)
{call}
"""


@pytest.mark.parametrize(
    "call", ["guilty()", "t = threading.Thread(target=guilty); t.start(); t.join()"]
)
def test_the_frame_of_a_crash_is_that_of_the_guilty_thread(call: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", CRASH.format(call=call)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert frame_in_dump("noise\n" + done.stderr + "more noise\n").endswith("in string_at")


def test_the_last_of_two_dumps_counts() -> None:
    dump = 'Current thread 0x0001 (most recent call first):\n  File "/a.py", line {} in f\n'
    thread = 'Thread 0x0002 (most recent call first):\n  File "/b.py", line 1 in g\n'
    assert frame_in_dump(dump.format(1) + dump.format(2)) == "/a.py:2 in f"
    assert frame_in_dump(dump.format(1) + thread) == "/a.py:1 in f"
    # a crash in a thread without Python code: the main thread comes last
    assert frame_in_dump(thread + thread.replace("1 in g", "5 in main")) == "/b.py:5 in main"


def test_no_dump_gives_no_frame() -> None:
    assert frame_in_dump("") == ""
    assert frame_in_dump("Current thread 0x0001 (most recent call first):") == ""
    assert (
        frame_in_dump("Current thread 0x0001 (most recent call first):\n  <no Python frame>") == ""
    )
