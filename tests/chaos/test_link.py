"""The link to the API goes down with calls in flight: what is given up does not reach the API later.

Two network namespaces with a cable between them, so that only this test has its network cut. The kernel repeats
what was not acknowledged, for minutes if nobody tells it to stop.
"""

import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.chaos.harness import CALL_SECONDS, RECLAIM_SECONDS, Proxy, ask, create
from tests.chaos.namespaces import ip, listener_in, namespace, or_skip
from tests.processes import until

WORKERS, APIS = "10.213.0.1", "10.213.0.2"
# How long the link is down. The kernel ends the calls of a frozen process by itself, at their deadline or a little
# later: if the cable of the host itself has no carrier, its timer is late.
CUT_SECONDS = {"alive": CALL_SECONDS + 1, "killed": CALL_SECONDS + 1, "frozen": 2 * CALL_SECONDS + 1}


@pytest.fixture
def link(api):
    """A cable between a namespace for workers and one in which the API is reached; `cut` and `mend` it."""
    with ExitStack() as stack:
        with or_skip():
            workers, apis = (stack.enter_context(namespace(side)) for side in ("workers", "apis"))
            ip("link", "add", "cable", "netns", workers, "type", "veth", "peer", "name", "cable", "netns", apis)
            for name, address in ((workers, WORKERS), (apis, APIS)):
                ip("-n", name, "addr", "add", f"{address}/30", "dev", "cable")
                ip("-n", name, "link", "set", "cable", "up")
            listener = listener_in(apis, APIS)
        proxy = stack.enter_context(Proxy(("127.0.0.1", int(api.url.rpartition(":")[2])), listener))
        yield SimpleNamespace(
            url=f"http://{APIS}:{proxy.port}",
            inside=("ip", "netns", "exec", workers),
            cut=lambda: ip("-n", apis, "link", "set", "cable", "down"),
            mend=lambda: ip("-n", apis, "link", "set", "cable", "up"),
        )


def unsent(pid):
    """How many connections of a process's namespace hold data that was not acknowledged."""
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    return sum(not line.split()[4].startswith("00000000:") for line in lines)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("worker_is", CUT_SECONDS)
def test_a_call_that_is_given_up_while_the_link_is_down_deletes_nothing_later(system, api, link, worker_is):
    # Given deletions that are past their last check
    names, seconds = create(api, "ft", 8), CUT_SECONDS[worker_is]
    system.env |= {"BFL_API_URL": link.url, "JANITOR_ALLOW_API_URL": "true", "CHAOS_FOLDER": str(system.folder)}
    first = system.start_worker(crash_at="held at the attempt", before=link.inside)
    ask(system, *names)
    held = [system.folder / f"held-{name}" for name in names]
    until(lambda: all(path.exists() for path in held), seconds=60, what="all attempts")
    # When the link goes down, and then they are sent
    link.cut()
    went_down = time.monotonic()
    (system.folder / "go").touch()
    until(lambda: unsent(first.process.pid) == len(names), seconds=60, what="all requests in the kernel")
    if worker_is == "killed":
        first.process.kill()
    if worker_is == "frozen":
        first.process.send_signal(signal.SIGSTOP)
    # And the names are used again before the link is back
    for name in names:
        api.create(name, iterations=7)
    until(lambda: time.monotonic() - went_down > seconds, seconds=seconds + 1, what="the end of all calls")
    link.mend()
    # Then nothing arrives any more. A repetition would come within the time that the link was down.
    threading.Event().wait(seconds + 1)
    assert api.deletes() == []
    if worker_is == "frozen":
        first.process.send_signal(signal.SIGCONT)
    if worker_is == "killed":
        system.start_worker(before=link.inside)
    # And the new finetunes live: nobody knows what removed the old ones.
    system.wait_until_final(RECLAIM_SECONDS + 60)
    assert {deletion.state for deletion in system.deletions()} <= {"review", "deleted"}
    assert {deletion.evidence for deletion in system.deletions()} <= {None, "read-back"}
    assert (api.deletes(), sorted(api.finetunes())) == ([], names)
