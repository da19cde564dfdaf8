"""The manager over a loader that loads nothing: states, swaps, retries, labels, lazy loading."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from bookserve.serving.server.models.config import ModelSetting
from bookserve.serving.server.models.manager import LoadPending, ManagerOptions, ModelManager, unavailable
from bookserve.serving.server.models.servable import Servable
from bookserve.serving.server.models.version_policy import All, Latest, Policy, Specific, versions_on_disk
from bookserve.serving.server.types.errors import ServingError, failed_precondition
from bookserve.serving.wire.tensorflow_serving_pb2 import ModelVersionStatus

State = ModelVersionStatus.State


@dataclass
class FakeLoader:
    """Loads at once, but for the versions that are told to fail or to wait."""

    broken: set[int] = field(default_factory=set)
    held: dict[int, asyncio.Event] = field(default_factory=dict)
    attempts: list[tuple[str, int]] = field(default_factory=list)
    loaded: set[tuple[str, int]] = field(default_factory=set)
    most: int = 0

    async def load(self, name: str, version: int, path: Path) -> Servable:
        self.attempts.append((name, version))
        if version in self.held:
            await self.held[version].wait()
        if version in self.broken:
            raise failed_precondition(f"{path.name} is broken")
        self.loaded.add((name, version))
        self.most = max(self.most, len(self.loaded))
        return Servable(name, version, cast(Any, None), cast(Any, None))

    async def unload(self, servable: Servable) -> None:
        await servable.until_idle()
        self.loaded.remove((servable.model, servable.version))

    async def close(self) -> None:
        pass


def folder(base: Path, *versions: int) -> Path:
    for version in versions:
        (base / str(version)).mkdir(parents=True)
    return base


def states(manager: ModelManager, name: str = "m") -> dict[int, str]:
    return {status.version: State.Name(status.state) for status in manager.status(name)}


def message(manager: ModelManager, version: int, name: str = "m") -> str:
    return manager.status(name, version)[0].status.error_message


async def until(condition: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)
    assert condition(), what


def run(test: Callable[[FakeLoader], Coroutine[Any, Any, None]]) -> None:
    async def body() -> None:
        await test(FakeLoader())

    asyncio.run(body())


async def serve(
    loader: FakeLoader, base: Path, *, policy: Policy | None = None, **options: Any
) -> tuple[ModelManager, ModelSetting]:
    manager = ModelManager(loader, ManagerOptions(**{"poll_seconds": 0.001, "retry_seconds": 0.0} | options))
    setting = ModelSetting("m", base, policy or Latest())
    await manager.until_tried(await manager.apply([setting]))
    manager.start_polling()
    return manager, setting


def test_the_new_version_is_there_before_the_old_one_goes(tmp_path: Path) -> None:
    async def body(loader: FakeLoader) -> None:
        manager, _ = await serve(loader, folder(tmp_path, 1))
        old = manager.find("m")
        old.in_flight += 1
        loader.held[2] = asyncio.Event()
        folder(tmp_path, 2)
        await until(lambda: states(manager) == {2: "LOADING", 1: "AVAILABLE"}, "2 loads")
        assert manager.ready
        assert manager.find("m") is old
        loader.held[2].set()
        await until(lambda: states(manager) == {2: "AVAILABLE", 1: "UNLOADING"}, "2 has taken over")
        assert manager.find("m").version == 2
        with pytest.raises(ServingError, match=r"Specific\(m, 1\)"):
            manager.find("m", version=1)
        assert ("m", 1) in loader.loaded  # a request is still under way
        old.release()
        await until(lambda: states(manager) == {2: "AVAILABLE", 1: "END"}, "1 has ended")
        assert loader.loaded == {("m", 2)}
        await manager.close()

    run(body)


def test_a_version_that_fails_leaves_the_old_one_and_is_tried_again(tmp_path: Path) -> None:
    async def body(loader: FakeLoader) -> None:
        manager, _ = await serve(loader, folder(tmp_path, 1), max_retries=2)
        loader.broken.add(2)
        folder(tmp_path, 2)
        await until(lambda: states(manager) == {2: "END", 1: "AVAILABLE"}, "2 has failed for good")
        assert loader.attempts == [("m", 1), ("m", 2), ("m", 2), ("m", 2)]
        assert message(manager, 2) == "2 is broken"
        assert manager.find("m").version == 1
        await manager.close()

    run(body)


def test_a_negative_number_of_retries_is_none(tmp_path: Path) -> None:
    async def body(loader: FakeLoader) -> None:
        manager, _ = await serve(loader, folder(tmp_path, 1), max_retries=-1)
        assert (states(manager), loader.attempts) == ({1: "AVAILABLE"}, [("m", 1)])
        await manager.close()

    run(body)


def test_what_is_missing_is_named_as_it_was_asked_for(tmp_path: Path) -> None:
    async def body(loader: FakeLoader) -> None:
        manager, _ = await serve(loader, folder(tmp_path, 1))
        for ask, message in (
            (lambda: manager.find("foo"), "NOT_FOUND: Servable not found for request: Latest(foo)"),
            (lambda: manager.find("foo", version=7), "NOT_FOUND: Servable not found for request: Specific(foo, 7)"),
            (lambda: manager.find("foo", label="a"), "INVALID_ARGUMENT: Unrecognized servable version label: a"),
            (lambda: manager.find("m", label="a"), "INVALID_ARGUMENT: Unrecognized servable version label: a"),
            (lambda: manager.status("foo"), "NOT_FOUND: Could not find any versions of model foo"),
            (lambda: manager.status("foo", 7), "NOT_FOUND: Could not find version 7 of model foo"),
        ):
            with pytest.raises(ServingError) as caught:
                ask()
            assert str(caught.value) == message
        await manager.close()

    run(body)


def test_retries_end_when_the_version_is_no_longer_wanted(tmp_path: Path) -> None:
    async def body(loader: FakeLoader) -> None:
        loader.broken.add(2)
        manager, _ = await serve(loader, folder(tmp_path, 1, 2), retry_seconds=1e6)
        assert states(manager) == {2: "LOADING"}  # between two attempts
        assert message(manager, 2) == "2 is broken"
        (tmp_path / "2").rmdir()
        await until(lambda: states(manager) == {2: "END", 1: "AVAILABLE"}, "2 is given up")
        assert message(manager, 2) == "Loading of servable cancelled"
        loader.broken.clear()
        folder(tmp_path, 2)  # comes back: tried afresh
        await until(lambda: states(manager).get(2) == "AVAILABLE", "2 is loaded")
        await manager.close()

    run(body)


def test_a_version_that_comes_back_while_it_is_unloaded(tmp_path: Path) -> None:
    async def body(loader: FakeLoader) -> None:
        manager, setting = await serve(loader, folder(tmp_path, 1, 2), policy=All())
        busy = manager.find("m", version=1)
        busy.in_flight += 1
        await manager.apply([ModelSetting("m", tmp_path, Specific(frozenset({2})))])
        assert states(manager) == {2: "AVAILABLE", 1: "UNLOADING"}
        await manager.apply([setting])
        busy.release()
        await until(lambda: states(manager) == {2: "AVAILABLE", 1: "AVAILABLE"}, "1 is back")
        assert manager.find("m", version=1) is not busy
        await manager.close()

    run(body)


def test_who_waits_for_a_version_that_is_no_longer_wanted_is_told(tmp_path: Path) -> None:
    async def body(loader: FakeLoader) -> None:
        loader.held[1] = asyncio.Event()
        manager = ModelManager(loader, ManagerOptions(poll_seconds=0))
        setting = ModelSetting("m", folder(tmp_path, 1))
        waiting = asyncio.create_task(manager.until_tried(await manager.apply([setting])))
        await asyncio.sleep(0)
        await manager.apply([ModelSetting("m", tmp_path, Specific(frozenset()))])
        (failure,) = await asyncio.wait_for(waiting, 20)
        assert str(failure.error) == "CANCELLED: Loading of servable cancelled"
        await manager.apply([setting])
        assert not manager.ready
        loader.held[1].set()
        await manager.until_tried(["m"])
        assert states(manager) == {1: "AVAILABLE"}
        assert message(manager, 1) == ""
        assert loader.attempts == [("m", 1)]
        await manager.close()

    run(body)


def test_only_the_last_versions_that_ended_are_remembered(tmp_path: Path) -> None:
    async def body(loader: FakeLoader) -> None:
        manager, _ = await serve(loader, folder(tmp_path, 1))
        for number in range(2, 12):
            folder(tmp_path, number)
            await until(lambda number=number: states(manager).get(number) == "AVAILABLE", "taken over")  # type: ignore[misc]
        await until(lambda: list(states(manager).values()) == ["AVAILABLE"] + ["END"] * 5, "the others have ended")
        assert list(states(manager)) == [11, 10, 9, 8, 7, 6]
        await manager.close()

    run(body)


def test_a_removed_model_ends_visibly_and_a_folder_that_vanishes_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(loader: FakeLoader) -> None:
        manager, _ = await serve(loader, folder(tmp_path / "m", 1))
        (tmp_path / "m").rename(tmp_path / "away")
        complaint = manager._models["m"]
        await until(lambda: "Could not find base path" in complaint.complaint, "the folder is missed")
        (record,) = [record for record in caplog.records if "Could not find base path" in record.getMessage()]
        assert record.levelname == "ERROR"
        assert record.getMessage().endswith(f" with error NOT_FOUND: {tmp_path / 'm'} not found")
        assert manager.find("m").version == 1
        (tmp_path / "away").rename(tmp_path / "m")
        await manager.apply([])
        assert manager.names == []
        with pytest.raises(ServingError, match=r"Latest\(m\)"):
            manager.find("m")
        await until(lambda: states(manager) == {1: "END"}, "the end is told")
        for number in range(40):
            await manager.apply([ModelSetting(f"other-{number}", tmp_path / "m")])
        assert len(manager._removed) <= 32
        await manager.close()

    run(body)


def test_a_folder_that_is_emptied_ends_the_model(tmp_path: Path) -> None:
    async def body(loader: FakeLoader) -> None:
        manager, _ = await serve(loader, folder(tmp_path, 1))
        (tmp_path / "1").rmdir()
        await until(lambda: states(manager) == {1: "END"}, "1 has ended")
        assert not manager.ready
        await manager.close()

    run(body)


def test_a_new_base_path_serves_the_old_one_until_it_has_something(tmp_path: Path) -> None:
    async def body(loader: FakeLoader) -> None:
        manager, _ = await serve(loader, folder(tmp_path / "old", 7))
        moved = ModelSetting("m", tmp_path / "new")
        (tmp_path / "new").mkdir()
        assert await manager.apply([moved]) == ["m"]
        (failure,) = await manager.until_tried(["m"])
        assert failure.version is None
        assert "No versions of servable m found under base path" in str(failure.error)
        assert manager.find("m").version == manager.find("m", version=7).version == 7
        folder(tmp_path / "new", 1)
        await until(lambda: loader.loaded == {("m", 1)}, "the old model is gone")
        assert manager.find("m").version == 1
        with pytest.raises(ServingError, match=r"Specific\(m, 7\)"):
            manager.find("m", version=7)
        await manager.close()

    run(body)


def test_versions_of_an_older_base_path_are_shown_as_ended(tmp_path: Path) -> None:
    folder(tmp_path / "old", 1, 2)
    folder(tmp_path / "new", 7)

    async def body(loader: FakeLoader) -> None:
        manager, _ = await serve(loader, tmp_path / "old", policy=All())
        assert states(manager) == {1: "AVAILABLE", 2: "AVAILABLE"}
        await manager.apply([ModelSetting("m", tmp_path / "new")])
        await until(lambda: states(manager) == {7: "AVAILABLE", 2: "END", 1: "END"}, "the old versions ended")
        await manager.apply([])
        await manager.apply([ModelSetting("m", tmp_path / "old")])
        await until(lambda: states(manager) == {7: "END", 2: "AVAILABLE", 1: "END"}, "they are remembered")
        await manager.close()

    run(body)


def test_a_name_that_rest_cannot_ask_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def body(loader: FakeLoader) -> None:
        manager = ModelManager(loader, ManagerOptions(poll_seconds=0))
        await manager.apply([ModelSetting(name, folder(tmp_path / "m")) for name in ("a/b", "a:b", "a.b")])
        told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert [line.split()[1] for line in told if "REST" in line] == ["a/b", "a:b"]
        await manager.close()

    run(body)


def test_two_folders_of_one_version_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("1", "01"):
        (tmp_path / name).mkdir()
    for _ in range(3):
        assert versions_on_disk(tmp_path) == {1: tmp_path / "1"}
    assert caplog.text.count("are the same version") == 1


def test_the_old_base_path_goes_on_swapping_until_the_new_one_has_something(tmp_path: Path) -> None:
    async def body(loader: FakeLoader) -> None:
        loader.held[8] = asyncio.Event()
        manager, _ = await serve(loader, folder(tmp_path / "old", 7))
        folder(tmp_path / "old", 8)
        await until(lambda: states(manager) == {8: "LOADING", 7: "AVAILABLE"}, "8 loads")
        (tmp_path / "new").mkdir()
        await manager.apply([ModelSetting("m", tmp_path / "new")])
        loader.held[8].set()
        await until(lambda: loader.loaded == {("m", 8)}, "7 is unloaded")
        assert manager.find("m").version == 8
        assert set(manager.state().models["m"].available) == {8}
        await manager.close()

    run(body)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Latest(), {3}),
        (Latest(2), {2, 3}),
        (All(), {1, 2, 3}),
        (Specific(frozenset({1, 3})), {1, 3}),
        (Specific(frozenset({1, 9})), {1}),
        (Specific(frozenset()), set()),
    ],
)
def test_policies(tmp_path: Path, policy: Policy, expected: set[int]) -> None:
    async def body(loader: FakeLoader) -> None:
        manager, _ = await serve(loader, folder(tmp_path, 1, 2, 3), policy=policy)
        assert {version for _, version in loader.loaded} == expected
        await manager.close()

    run(body)


def test_a_specific_policy_does_not_list_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bookserve.serving.server.models import version_policy

    folder(tmp_path, 1, 2)
    monkeypatch.setattr(version_policy, "versions_on_disk", lambda base_path: pytest.fail("listed"))
    assert version_policy.find(Specific(frozenset({2})), tmp_path) == {2: tmp_path / "2"}


@pytest.mark.parametrize(("seconds", "first", "later"), [(0.0, [1], [1]), (-1.0, [], [])])
def test_polling_once_and_never(tmp_path: Path, seconds: float, first: list[int], later: list[int]) -> None:
    async def body(loader: FakeLoader) -> None:
        manager, _ = await serve(loader, folder(tmp_path, 1), poll_seconds=seconds)
        assert [version for _, version in loader.attempts] == first
        folder(tmp_path, 2)
        await asyncio.sleep(0.05)
        assert [version for _, version in loader.attempts] == later
        assert manager.ready == bool(later)
        await manager.close()

    run(body)


def test_a_pinned_version_whose_folder_is_deleted_serves_on_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(loader: FakeLoader) -> None:
        pinned = Specific(frozenset({2}))
        manager, _ = await serve(loader, folder(tmp_path, 1, 2, 3), policy=pinned)
        (tmp_path / "2").rmdir()
        text = f"Version 2 of servable m, which its version policy names, is not below {tmp_path} (there: 1, 3)"
        await until(lambda: text in caplog.text, "the loss is told")
        assert [record.levelname for record in caplog.records if record.getMessage() == text] == ["ERROR"]
        assert states(manager) == {2: "AVAILABLE"}
        assert manager.find("m").version == 2
        assert manager.ready
        await manager.apply([ModelSetting("m", tmp_path, Specific(frozenset({3})))])
        await until(lambda: states(manager) == {3: "AVAILABLE", 2: "END"}, "the next choice takes over")
        await manager.close()
        later = ModelManager(loader, ManagerOptions(poll_seconds=0))  # where it was never loaded
        await later.apply([ModelSetting("m", tmp_path, pinned)])
        assert states(later) == {2: "END"}
        assert message(later, 2) == text
        assert not later.ready

    run(body)


def test_the_start_waits_for_a_version_and_names_what_has_failed_for_good(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(loader: FakeLoader) -> None:
        manager = ModelManager(loader, ManagerOptions(poll_seconds=0.001, retry_seconds=0.0, max_retries=2))
        names = await manager.apply(
            [ModelSetting(name, tmp_path / name) for name in ("late", "m")]
            + [ModelSetting("some", folder(tmp_path / "some", 7, 8), All())]
        )
        manager.start_polling()
        loader.broken |= {7, 9}
        starting = asyncio.create_task(manager.until_available(names))
        await until(lambda: "ports stay closed until there is a version of: late, m" in caplog.text, "it waits")
        folder(tmp_path / "m", 1)
        await until(lambda: ("m", 1) in loader.loaded, "one is there")
        assert not starting.done()
        folder(tmp_path / "late", 9)
        (failure,) = await asyncio.wait_for(starting, 20)  # 8 of `some` is available, so 7 is no failure
        assert unavailable([failure]) == "{{name: late version: 9} due to error: FAILED_PRECONDITION: 9 is broken}, }"
        assert loader.attempts.count(("late", 9)) == 3
        loader.broken.clear()
        folder(tmp_path / "late", 10)
        await until(lambda: ("late", 10) in loader.loaded, "the next one is available")
        assert await asyncio.wait_for(manager.until_available(names), 20) == []
        await manager.close()

    run(body)


@pytest.mark.parametrize("broken", [False, True])
def test_a_label_moves_once_its_version_is_loaded(tmp_path: Path, broken: bool) -> None:
    async def body(loader: FakeLoader) -> None:
        def setting(version: int) -> ModelSetting:
            return ModelSetting("m", tmp_path, Specific(frozenset({version})), {"stable": version})

        folder(tmp_path, 1, 2)
        manager = ModelManager(loader, ManagerOptions(poll_seconds=0, max_retries=0))
        await manager.until_tried(await manager.apply([setting(2)]))
        loader.held[1] = asyncio.Event()
        back = [setting(1)]
        with pytest.raises(ServingError, match="label to version 1"):
            manager.check_labels(back)
        manager.check_labels(back, await manager.wanted(back))
        await manager.apply(back)
        assert states(manager) == {2: "AVAILABLE", 1: "LOADING"}
        assert manager.find("m", label="stable").version == 2
        assert dict(manager.state().models["m"].labels) == dict(manager.overview()["m"][0]) == {"stable": 2}
        if broken:
            loader.broken.add(1)
        loader.held[1].set()
        await until(lambda: states(manager)[2 if not broken else 1] == "END", "tried")
        assert manager.find("m", label="stable").version == manager.find("m").version == (2 if broken else 1)
        await manager.apply([])
        await until(lambda: loader.loaded == set(), "a model that is removed keeps nothing for its labels")
        await manager.close()

    run(body)


def labelled(base: Path, **labels: int) -> list[ModelSetting]:
    return [ModelSetting("m", base, All(), labels)]


def test_labels_name_available_versions(tmp_path: Path) -> None:
    async def body(loader: FakeLoader) -> None:
        loader.held[3] = asyncio.Event()
        manager = ModelManager(loader, ManagerOptions(poll_seconds=0))
        folder(tmp_path, 1, 2, 3)
        with pytest.raises(
            ServingError,
            match=r"FAILED_PRECONDITION: Request to assign label to version 1 of model m,"
            " which is not currently available for inference",
        ):
            manager.check_labels(labelled(tmp_path, stable=1))
        await manager.apply(labelled(tmp_path))
        await until(lambda: len(loader.loaded) == 2, "1 and 2 are loaded")
        manager.check_labels(labelled(tmp_path, stable=1, canary=2))
        with pytest.raises(ServingError, match="label to version 3"):
            manager.check_labels(labelled(tmp_path, stable=1, canary=3))
        await manager.apply(labelled(tmp_path, stable=1))
        assert manager.find("m", label="stable").version == 1
        await manager.apply(labelled(tmp_path))
        with pytest.raises(ServingError, match="Unrecognized servable version label: stable"):
            manager.find("m", label="stable")
        await manager.close()

    run(body)


def test_new_labels_may_name_unavailable_versions_where_that_is_allowed(tmp_path: Path) -> None:
    async def body(loader: FakeLoader) -> None:
        manager = ModelManager(loader, ManagerOptions(poll_seconds=0, labels_for_unavailable=True))
        folder(tmp_path, 1, 2)
        manager.check_labels(labelled(tmp_path, stable=1))
        await manager.until_tried(await manager.apply(labelled(tmp_path, stable=1)))
        manager.check_labels(labelled(tmp_path, stable=2))  # available
        manager.check_labels(labelled(tmp_path, stable=1, later=9))
        with pytest.raises(ServingError, match="label to version 9"):
            manager.check_labels(labelled(tmp_path, stable=9))
        await manager.close()

    run(body)


async def ask(manager: ModelManager, name: str, version: int | None = None) -> Servable:
    """What a transport does with LoadPending: asks again from the callback."""
    found: asyncio.Future[Servable] = asyncio.get_running_loop().create_future()

    def attempt() -> None:
        try:
            found.set_result(manager.find(name, version))
        except LoadPending as pending:
            pending.waiters.append(attempt)
        except ServingError as error:
            found.set_exception(error)

    attempt()
    return await asyncio.wait_for(found, 20)


def test_lazy_loading_loads_what_is_asked_for(tmp_path: Path) -> None:
    async def body(loader: FakeLoader) -> None:
        manager, _ = await serve(loader, folder(tmp_path, 1, 2), policy=All(), lazy=True)
        assert states(manager) == {2: "START", 1: "START"}
        assert "first request" in message(manager, 2)
        assert manager.ready
        assert loader.attempts == []
        assert (await ask(manager, "m")).version == 2
        assert (await ask(manager, "m", 1)).version == 1
        assert loader.attempts == [("m", 2), ("m", 1)]
        folder(tmp_path, 3)
        await until(lambda: 3 in states(manager), "3 is seen")
        assert loader.attempts[2:] == []
        assert manager.find("m").version == 2  # serves while 3 loads
        await until(lambda: manager.find("m").version == 3, "3 is loaded")
        with pytest.raises(ServingError, match=r"Specific\(m, 9\)"):
            manager.find("m", version=9)
        await manager.apply([ModelSetting("m", tmp_path, Specific(frozenset({1})))])
        await until(lambda: manager.find("m").version == 1, "back to 1")
        await until(lambda: loader.loaded == {("m", 1)}, "the newer ones have gone")
        await manager.close()

    run(body)


def test_lazy_loading_that_fails_is_told_and_tried_again_later(tmp_path: Path) -> None:
    async def body(loader: FakeLoader) -> None:
        loader.broken.add(1)
        manager, _ = await serve(loader, folder(tmp_path, 1), lazy=True, retry_seconds=0.2)
        with pytest.raises(ServingError, match=r"Loading of servable .* failed: FAILED_PRECONDITION: 1 is broken"):
            await ask(manager, "m")
        assert loader.attempts == [("m", 1)]
        loader.broken.clear()

        async def works() -> bool:
            try:
                return (await ask(manager, "m")).version == 1
            except ServingError:
                return False

        async with asyncio.timeout(20):
            while not await works():
                await asyncio.sleep(0.01)
        assert loader.attempts == [("m", 1)] * 2
        await manager.close()

    run(body)


def test_the_least_recently_used_version_makes_room(tmp_path: Path) -> None:
    async def body(loader: FakeLoader) -> None:
        names = [f"m{number}" for number in range(5)]
        settings = [ModelSetting(name, folder(tmp_path / name, 1)) for name in names]
        manager = ModelManager(loader, ManagerOptions(poll_seconds=0, lazy=True, max_loaded=2))
        await manager.apply(settings)
        await ask(manager, "m0")
        await ask(manager, "m1")
        await ask(manager, "m0")
        await ask(manager, "m2")
        assert {name for name, _ in loader.loaded} == {"m0", "m2"}
        assert states(manager, "m1") == {1: "START"}
        assert states(manager, "m0") == {1: "AVAILABLE"}
        busy = await ask(manager, "m0")
        busy.in_flight += 1
        await ask(manager, "m3")
        assert {name for name, _ in loader.loaded} == {"m0", "m3"}  # m2, though used later than m0, was idle
        asked = [asyncio.create_task(ask(manager, name)) for name in names * 20]
        await asyncio.sleep(0)
        busy.release()
        assert {servable.model for servable in await asyncio.gather(*asked)} == set(names)
        assert loader.most <= 2
        await manager.close()

    run(body)


def test_a_failed_load_gives_its_room_back(tmp_path: Path) -> None:
    async def body(loader: FakeLoader) -> None:
        loader.broken.add(7)
        settings = [ModelSetting("bad", folder(tmp_path / "bad", 7)), ModelSetting("m", folder(tmp_path / "m", 1))]
        manager = ModelManager(loader, ManagerOptions(poll_seconds=0, lazy=True, max_loaded=1))
        await manager.apply(settings)
        for _ in range(3):
            with pytest.raises(ServingError, match="7 is broken"):
                await ask(manager, "bad")
            assert (await ask(manager, "m")).version == 1
        await manager.close()

    run(body)


def test_requests_that_wait_for_a_load_are_bounded(tmp_path: Path) -> None:
    async def body(loader: FakeLoader) -> None:
        loader.held[1] = asyncio.Event()
        manager, _ = await serve(loader, folder(tmp_path, 1), lazy=True)
        for _ in range(2000):
            with pytest.raises(LoadPending) as caught:
                manager.find("m")
            caught.value.waiters.append(lambda: None)
        with pytest.raises(ServingError, match="RESOURCE_EXHAUSTED: 2000 requests already wait"):
            manager.find("m")
        await manager.close()

    run(body)
