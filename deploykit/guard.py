"""The process above a worker: nothing that the worker starts outlives it, or the parent.

As a subreaper it stays the ancestor of all that the worker starts, also of a daemon that left its
session, lost its parents and cleared its environment. It sleeps until the worker ends or the parent
is gone, then ends the rest.

Why not less: a thread in the worker could not act while native code holds the interpreter; the
kernel's parent-death signal reaches only the worker itself, and fires already when the *thread* of
the parent that started it ends.

This file also runs inside plugin environments: standard library only.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import select
import shutil
import signal

from deploykit.family import end_own_descendants

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36


def fork_under_guard(requests: int) -> None:
    """Return in a child process; this process becomes its guard and never returns.

    `requests` is the pipe from the parent. The guard ends as the child ends: with the same exit
    status or by the same signal. Call it before any thread exists.

    Without a `DEPLOYKIT_JOB` in the environment there is no parent to watch (somebody replays a job
    by hand): then it returns at once, without a guard.
    """
    if not os.environ.get("DEPLOYKIT_JOB"):
        return
    parent, guard = os.getppid(), os.getpid()
    _control(_PR_SET_CHILD_SUBREAPER, 1)
    child = os.fork()
    if child == 0:
        # our guard has one thread, so here the signal means what it says
        _control(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:
            os._exit(1)
        os.setsid()
        return
    status = 1
    try:
        status = _watch(requests, parent, child)
    finally:
        _end_likewise(status)


def _watch(requests: int, parent: int, child: int) -> int:
    """Sleep until `child` or the parent ends; end what is left; return the child's wait status."""
    pipe = os.dup2(requests, 3)
    # above all the answers: while we hold them open, the parent would not see the worker end
    os.closerange(4, 4096)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    poll = select.poll()
    poll.register(pipe, 0)  # no events asked for: only the hang-up is told
    step_ms = None
    try:
        # The pipe does not hang up while a fork of the parent holds it: watch the parent as well.
        ends = [os.pidfd_open(parent), os.pidfd_open(child)]
    except (AttributeError, OSError):
        step_ms = 500  # no descriptors of processes here: look now and then
    else:
        for end in ends:
            poll.register(end, select.POLLIN)
    while True:
        events = poll.poll(step_ms)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended or events or os.getppid() != parent:
            break
    end_own_descendants()
    # A dying parent closes the pipe before it lets go of its children: an idle worker may see that
    # and end by itself while the parent is still ours.
    if os.getppid() != parent or any(number == pipe for number, _ in poll.poll(0)):
        # nobody is left to tidy up
        scratch = os.environ.get("TMPDIR", "")
        if os.path.basename(scratch).startswith("deploykit-"):  # noqa: PTH119
            shutil.rmtree(scratch, ignore_errors=True)
    return status if ended else 1


def _end_likewise(status: int) -> None:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the worker's own is the one of interest
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1)


def _control(option: int, value: int) -> None:
    """Call `prctl` where there is one; elsewhere processes are found by their mark alone."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
