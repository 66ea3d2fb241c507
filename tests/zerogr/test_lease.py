"""One driver at a time, at the level of files: who gets a lease, who is refused, who is dead, and what a loser may still do."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from zerogr.errors import Fault, UserError
from zerogr.index import driver, lease
from zerogr.index.driver import lease_of, ticket_of, working_under
from zerogr.index.index import Index
from zerogr.index.lease import Found, Lease, find_lease, holder_of, numbers_of, own_lease, path_of
from zerogr.index.versions import folder_of
from zerogr.store import storage


@pytest.fixture
def index(tmp_path: Path) -> Index:
    found = Index(str(tmp_path / "index"))
    storage.write_bytes(found.path("corpus", "part-000000.parquet"), b"x")
    return found


def write_lease(index: Index, **changes: object) -> Lease:
    """Writes a lease as another machine's driver would, and returns it."""
    written = replace(own_lease(), host="elsewhere", machine="another", id="other", **changes)
    storage.write_json(path_of(index, 1), written.as_json())
    return written


def race(uri: str, num_drivers: int = 2) -> list[str]:
    """Returns what became of drivers that begin together: "worked", or the refusal. The winner waits for the others."""
    together, refused = threading.Barrier(num_drivers), threading.Barrier(num_drivers)

    def drive(number: int) -> str:
        together.wait()
        try:
            with lease_of(Index(uri)):
                storage.write_json(f"{uri}/winner.json", number)
                refused.wait(timeout=900)
                return "worked"
        except UserError as error:
            refused.wait(timeout=900)
            return str(error)

    with ThreadPoolExecutor(num_drivers) as threads:
        return list(threads.map(drive, range(num_drivers)))


class TestTwoAtOnce:
    @pytest.mark.parametrize("has_links", [True, False])
    def test_on_a_disk(self, tmp_path: Path, has_links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

        if not has_links:
            monkeypatch.setattr(os, "link", refuse)
        self.assert_one_works([str(tmp_path / str(attempt)) for attempt in range(100)])

    def test_on_a_disk_again_and_again(self, tmp_path: Path) -> None:
        self.assert_one_works([str(tmp_path / "index")] * 100, num_drivers=3)
        assert numbers_of(Index(str(tmp_path / "index"))) == [100]

    @pytest.mark.integration
    def test_on_object_storage(self, s3_server: str) -> None:
        self.assert_one_works([f"s3://zerogr/leases/{attempt}" for attempt in range(10)])
        self.assert_one_works(["s3://zerogr/leases/same"] * 10)

    def assert_one_works(self, uris: list[str], num_drivers: int = 2) -> None:
        for uri in uris:
            ends = race(uri, num_drivers)
            assert Counter(end == "worked" for end in ends) == {True: 1, False: num_drivers - 1}, ends
            assert all("is being changed by" in end for end in ends if end != "worked")
            assert storage.read_json(f"{uri}/winner.json") == ends.index("worked")
            assert holder_of(Index(uri)) is None

    def test_an_answer_that_was_lost(self, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
        """A repeated conditional put is refused by what the first has created."""
        create = storage.create_json
        monkeypatch.setattr(storage, "create_json", lambda uri, value: create(uri, value) and False)
        with lease_of(index):
            assert holder_of(index) is not None

    def test_a_number_that_is_free_again(self, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who has looked long ago creates a file below the newest one, and must not take it for the lease."""
        write_lease(index, released=True)
        looks = [find_lease(index)]
        monkeypatch.setattr(driver, "find_lease", lambda root: looks.pop() if looks else find_lease(root))
        storage.write_json(path_of(index, 5), replace(own_lease(), id="newest").as_json())
        lease.ACTIVE.add("newest")
        try:
            with pytest.raises(UserError, match="is being changed"), lease_of(index):
                pass
        finally:
            lease.ACTIVE.discard("newest")
        assert numbers_of(index)[-1] == 5 and 2 not in numbers_of(index)


class TestRefusal:
    def test_says_who_since_when_what_and_what_to_do(self, index: Index) -> None:
        write_lease(index, process=17, command="zerogr index config.yaml", since=1800000000.0)
        with pytest.raises(UserError) as caught, lease_of(index):
            pass
        said, _, rest = str(caught.value).partition(", last heard of ")
        assert said == (
            f"'{index.uri}' is being changed by elsewhere, process 17, since 2027-01-15 08:00:00 UTC: "
            "`zerogr index config.yaml`"
        )
        assert re.fullmatch(r"\w+ ago; wait for its end with --wait, or end that process", rest)

    def test_blocks_in_blocks_are_one_lease_and_threads_are_not(self, index: Index) -> None:
        version = Index(index.path(folder_of(3)))
        with lease_of(index), lease_of(version), lease_of(Index(index.uri + "/")):
            assert numbers_of(index) == [1]
            with ThreadPoolExecutor(1) as thread, pytest.raises(UserError, match="is being changed"):
                thread.submit(lambda: lease_of(index).__enter__()).result()
        assert holder_of(index) is None

    def test_any_command_can_be_told(self, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", ["/usr/bin/zerogr", "index", "a b.yaml", "\udcff", "x" * 1000])
        with lease_of(index):
            holder = holder_of(index)
        assert holder is not None and holder.command == "zerogr index 'a b.yaml' '?' ..."

    def test_given_back_after_an_error(self, index: Index) -> None:
        with pytest.raises(ZeroDivisionError), lease_of(index):
            raise ZeroDivisionError
        assert holder_of(index) is None
        with lease_of(index):
            assert numbers_of(index) == [2]

    def test_what_made_nothing_leaves_nothing(self, tmp_path: Path) -> None:
        with lease_of(Index(str(tmp_path))):
            pass
        assert not list(tmp_path.iterdir())

    def test_a_folder_of_another_format_is_not_written_to(self, tmp_path: Path) -> None:
        storage.write_json(str(tmp_path / "index.json"), {"format": 1})
        with pytest.raises(UserError, match="has format 1"), lease_of(Index(str(tmp_path))):
            pass
        assert [path.name for path in tmp_path.iterdir()] == ["index.json"]


class TestTakingOver:
    def test_at_once_when_the_process_is_gone(self, index: Index) -> None:
        script = (
            "import os, sys; from zerogr.index.driver import lease_of; from zerogr.index.index import Index\n"
            "with lease_of(Index(sys.argv[1])): os.kill(os.getpid(), 9)"
        )
        run = subprocess.run([sys.executable, "-c", script, index.uri], env={**os.environ, "PYTHONPATH": os.getcwd()})
        assert run.returncode == -9
        found = find_lease(index)
        assert found.lease is not None and not found.lease.released and found.is_free
        with lease_of(index):
            assert numbers_of(index) == [2], "the file of the dead one is gone"

    def test_a_process_of_the_same_number_is_another_one(self, index: Index) -> None:
        mine = own_lease()
        alive = replace(mine, process=os.getppid(), process_start=lease._start_of(os.getppid()))
        assert not alive.is_gone()
        at_another_time = f"{alive.process_start}0"
        assert replace(alive, process_start=at_another_time).is_gone()
        assert not replace(alive, process_start=at_another_time, machine="another").is_gone()
        assert not replace(alive, process_start="", machine="").is_gone()
        assert replace(mine, id="of an earlier block").is_gone()

    def test_a_zombie_is_gone(self) -> None:
        with subprocess.Popen([sys.executable, "-c", ""]) as process:
            deadline = time.monotonic() + 300
            while lease._start_of(process.pid) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert replace(own_lease(), process=process.pid, process_start="1").is_gone()

    def test_after_the_expiry_on_another_machine(self, index: Index) -> None:
        write_lease(index, expiry_s=0.5, heartbeat=time.time() - 1)
        with lease_of(index):
            assert holder_of(index) is not None
            assert numbers_of(index) == [2]

    @pytest.mark.parametrize("ahead_s", [-3600.0, 3600.0])
    def test_a_wrong_clock_steals_no_living_lease(self, index: Index, ahead_s: float) -> None:
        def beat(number: int) -> None:
            write_lease(index, expiry_s=60.0, heartbeat=time.time() + ahead_s, num_heartbeats=number)

        beat(0)
        is_over = threading.Event()

        def go_on() -> None:
            number = 0
            while not is_over.wait(0.2):
                beat(number := number + 1)

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            with pytest.raises(UserError, match="is being changed by elsewhere"), lease_of(index):
                pass
        finally:
            is_over.set()
            thread.join()
        assert numbers_of(index) == [1]

    @pytest.mark.parametrize("ahead_s", [-3600.0, 0.0, 3600.0])
    def test_a_wrong_clock_makes_nobody_wait_for_ever(self, index: Index, ahead_s: float) -> None:
        write_lease(index, expiry_s=0.5, heartbeat=time.time() + ahead_s)
        with lease_of(index, wait=True):
            assert numbers_of(index) == [2]

    def test_a_file_that_cannot_be_read_is_waited_out(self, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lease, "EXPIRY_S", 0.5)
        storage.write_bytes(path_of(index, 1), b"")
        with lease_of(index):
            assert numbers_of(index) == [2]

    def test_waiting(self, index: Index, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO")
        has_it, order = threading.Event(), list[str]()

        def drive() -> None:
            with lease_of(index):
                has_it.set()
                while "waiting for its end" not in caplog.text:
                    time.sleep(0.01)
                order.append("first")

        thread = threading.Thread(target=drive)
        thread.start()
        has_it.wait(60)
        with lease_of(index, wait=True):
            order.append("second")
        thread.join()
        assert order == ["first", "second"]


def take_away(index: Index) -> None:
    """Takes over as another driver would that has found this one dead."""
    storage.write_json(path_of(index, 2), replace(own_lease(), host="elsewhere", process=17, id="other").as_json())


class TestLosing:
    CHANGES: dict[str, Callable[[Index], object]] = {
        "write": lambda index: storage.write_bytes(index.path("index.json"), b"{}"),
        "create": lambda index: storage.create_json(index.path("work", "docids.json"), {}),
        "delete": lambda index: storage.delete(index.path("corpus")),
        "upload": lambda index: storage.upload_folder(Path(__file__).parent, index.path("trie")),
        "update": lambda index: storage.write_bytes(index.path(folder_of(1), "update.json"), b"{}"),
    }

    @pytest.mark.parametrize("change", CHANGES)
    def test_nothing_more_is_changed(self, index: Index, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
        now_s = 0.0
        monkeypatch.setattr(driver, "clock", lambda: now_s)
        before = storage.list_files(index.uri)
        with (
            pytest.raises(
                Fault, match=r"was lost after 1m01s without a heartbeat; it has gone to elsewhere, process 17"
            ),
            lease_of(index),
        ):
            take_away(index)
            now_s = 61.0
            self.CHANGES[change](index)
        assert {name: size for name, size in storage.list_files(index.uri).items() if "lease" not in name} == before
        assert find_lease(index).number == 2 and find_lease(index).lease.host == "elsewhere"

    def test_other_places_may_be_changed(self, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with suppress(Fault), lease_of(index):
            take_away(index)
            monkeypatch.setattr(driver, "clock", lambda: time.monotonic() + 61)
            storage.write_bytes(str(tmp_path / "index-of-another"), b"x")
        assert (tmp_path / "index-of-another").exists()

    def test_a_young_heartbeat_asks_nobody(self, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
        with lease_of(index), monkeypatch.context() as patch:
            patch.setattr(driver, "find_lease", lambda root: pytest.fail("asked"))
            storage.write_bytes(index.path("index.json"), b"{}")

    def test_the_heartbeat_ends_what_the_driver_is_at(self, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lease, "EXPIRY_S", 0.6)
        # It is ignored where tests run in the background.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        went_on = False
        try:
            with pytest.raises(Fault, match="was lost"), lease_of(index):
                take_away(index)
                time.sleep(60)
                went_on = True
        finally:
            signal.signal(signal.SIGINT, before)
        assert not went_on

    def test_a_lease_that_was_deleted_is_lost(self, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(Fault, match="was lost"), lease_of(index):
            storage.delete(index.path("work"))
            monkeypatch.setattr(driver, "clock", lambda: time.monotonic() + 61)
            storage.write_bytes(index.path("index.json"), b"{}")

    @pytest.mark.timeout(60)
    def test_a_signal_in_the_middle_of_a_question(self, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
        """The handler of SIGTERM writes into the index, whatever the main thread is at."""
        signals = [lambda: storage.write_bytes(index.path("work", "ending.json"), b"{}")]

        def interrupted(root: Index) -> Found:
            if signals:
                signals.pop()()
            return find_lease(root)

        with lease_of(index):
            monkeypatch.setattr(driver, "clock", lambda: time.monotonic() + 61)
            monkeypatch.setattr(driver, "find_lease", interrupted)
            storage.write_bytes(index.path("index.json"), b"{}")
        assert Path(index.path("work", "ending.json")).exists() and Path(index.path("index.json")).exists()

    def test_storage_that_cannot_be_asked(self, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(root: Index) -> None:
            raise OSError("no network")

        with pytest.raises(OSError, match="no network"), lease_of(index):
            monkeypatch.setattr(driver, "clock", lambda: time.monotonic() + 61)
            monkeypatch.setattr(driver, "find_lease", fail)
            storage.write_bytes(index.path("index.json"), b"{}")
        assert not Path(index.path("index.json")).exists()

    def test_heartbeats_keep_it(self, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lease, "EXPIRY_S", 0.6)
        with lease_of(index):
            first = find_lease(index).lease
            deadline = time.monotonic() + 300
            while (now := find_lease(index).lease).num_heartbeats < 3 and time.monotonic() < deadline:
                time.sleep(0.02)
            assert now.id == first.id and now.num_heartbeats >= 3

    def test_workers_of_a_driver_that_lost(self, index: Index) -> None:
        with lease_of(index):
            ticket = ticket_of(Index(index.path(folder_of(1))))
        assert ticket is not None and ticket_of(index) is None
        with working_under(ticket):
            storage.write_bytes(index.path("queries", "a"), b"x")
            take_away(index)
            with pytest.raises(Fault, match=r"has gone to another driver \(lease 2, 1 before\)"):
                storage.write_bytes(index.path("queries", "b"), b"x")
        assert not Path(index.path("queries", "b")).exists()
