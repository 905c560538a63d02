"""The target tvm tunes: budgets, records kept and used again, candidates that crash, values kept."""

from __future__ import annotations

import importlib
import json
import lzma
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from deploykit import plugins
from deploykit.protocol import Hardware

TARGET = "tvm"
pytestmark = pytest.mark.environment


def _part(name: str) -> Any:
    package = plugins.target(TARGET).module.rpartition(".")[0]
    return importlib.import_module(f"{package}.{name}")


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the records of this machine, or of another test."""
    place = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("DEPLOYKIT_HOME", str(place))
    return place


def _image() -> dict[str, Any]:
    return {"x": np.random.default_rng(0).normal(size=(1, 16, 20, 36)).astype(np.float32)}


def _records(home: Path) -> list[str]:
    return [
        line for path in home.glob("tvm/*/*/records.json") for line in path.read_text().splitlines()
    ]


def _kernels(bench: Any, model: Any, tmp_path: Path) -> list[Any]:
    """Return the model's kernels as tuning sees them."""
    import onnx
    import tvm
    from tvm import relax

    from deploykit.onnx_file import signature_of

    graphs = _part("graphs")
    path = tmp_path / "kernels.onnx"
    onnx.save(model, path)
    module = graphs.imported(graphs.folded(str(path), signature_of(model).inputs))
    with _part("machine").this_one(2).target:
        module = _part("layout").channels_last(module)
        module = tvm.transform.Sequential(
            [relax.transform.DecomposeOpsForInference(), relax.get_pipeline("zero")]
        )(module)
    found: list[Any] = _part("tuning").kernels_of(module)
    return found


def test_choices_begin_with_the_rule() -> None:
    choices = _part("schedules").Choices((0, 2, 9))
    assert choices.pick([4, 4, 8]) == 4
    assert choices.pick(["a", "b", "c"]) == "c"
    assert choices.pick([1, 2]) == 2  # past the end: the last
    assert choices.pick([5, 6, 7]) == 5  # not chosen: the rule
    assert choices.sizes == [2, 3, 2, 3]


def test_what_was_found_is_kept_and_used_again(
    bench: Any, convolutions: Any, own_home: Path
) -> None:
    outputs: Any = ReferenceEvaluator(convolutions).run(None, _image())
    expected = outputs[0]
    first = bench.compile(convolutions, settings={"tune": "4"})
    assert first.settings["tune"] == "4"
    assert "tuned by" in first.notes[0]
    lines = _records(own_home)
    assert lines
    np.testing.assert_allclose(bench.load().run(_image())["y"], expected, rtol=1e-4, atol=1e-5)

    again = bench.compile(convolutions, settings={"tune": "0"})
    assert "without tuning" in again.notes[0]
    assert "0 of" not in again.notes[0]
    assert _records(own_home) == lines  # no new trial
    np.testing.assert_allclose(bench.load().run(_image())["y"], expected, rtol=1e-4, atol=1e-5)


def test_a_small_model_is_not_tuned_unasked(bench: Any, convolutions: Any, own_home: Path) -> None:
    result = bench.compile(convolutions)
    assert result.settings["tune"] == "60"
    assert "too small" in result.notes[0]
    assert _records(own_home) == []


def test_another_machine_cannot_be_timed(bench: Any, convolutions: Any, own_home: Path) -> None:
    board = Hardware(name="board", triple="aarch64-linux-gnu", cpu="cortex-a72", cores=4)
    result = bench.compile(convolutions, hardware=board, settings={"tune": "4"})
    assert "cannot be timed here" in result.notes[0]
    assert _records(own_home) == []


def test_every_order_of_loops_gives_the_same_values(
    bench: Any, convolutions: Any, tmp_path: Path
) -> None:
    import tvm

    schedules = _part("schedules")
    here = _part("machine").this_one(2)
    drawn = random.Random(4)

    def ran(module: Any, arguments: list[Any]) -> Any:
        outputs = [tvm.runtime.tensor(each) for each in arguments]
        tvm.compile(module, here.target).jit()["main"](*outputs)
        return outputs[-1].numpy()

    tried = 0
    for kernel in _kernels(bench, convolutions, tmp_path):
        choices = schedules.Choices()
        sizes = {"lanes": here.lanes, "registers": here.registers}
        plan = schedules.ordered(kernel.module["main"], choices=choices, **sizes)
        if plan is None or not choices.sizes:
            continue
        source = np.random.default_rng(1)
        arguments = [
            source.normal(size=[int(size) for size in each.shape]).astype(str(each.dtype))
            for each in kernel.module["main"].params
        ]
        expected = ran(plan.mod, arguments)
        for _ in range(4):
            picked = [drawn.randrange(size) for size in choices.sizes]
            other = schedules.ordered(
                kernel.module["main"], choices=schedules.Choices(picked), **sizes
            )
            if other is not None:
                tried += 1
                np.testing.assert_allclose(
                    ran(other.mod, arguments), expected, rtol=1e-4, atol=1e-4
                )
    assert tried >= 6


def test_a_candidate_that_cannot_be_timed_ends_nothing(
    bench: Any, convolutions: Any, tmp_path: Path
) -> None:
    here = _part("machine").this_one(1)
    watch = _part("measuring").Stopwatch(here.target)
    kernel = _kernels(bench, convolutions, tmp_path)[0]
    plan = _part("schedules").ordered(
        kernel.module["main"],
        lanes=here.lanes,
        registers=here.registers,
        choices=_part("schedules").Choices(),
    )
    try:
        first = watch.seconds(plan.mod)
        assert first is not None
        assert 0 < first < 1
        watch._process.kill()  # as a candidate that crashes does
        assert watch.seconds(plan.mod) is None
        again = watch.seconds(plan.mod)
        assert again is not None
        assert again > 0
    finally:
        watch.stop()


def _filled(bench: Any, model: Any) -> Any:
    bench.compile(model, settings={"tune": "3"})
    return _part("records").folder(_part("machine").this_one(2))


def test_a_line_cut_short_is_cut_off(bench: Any, convolutions: Any, own_home: Path) -> None:
    place = _filled(bench, convolutions)
    whole = (place / "records.json").read_bytes()
    (place / "records.json").write_bytes(whole + b'[0, [[["GetSB')
    result = bench.compile(convolutions, settings={"tune": "0"})
    assert "0 of" not in result.notes[0]
    assert (place / "records.json").read_bytes() == whole


def test_damaged_records_are_set_aside(bench: Any, convolutions: Any, own_home: Path) -> None:
    place = _filled(bench, convolutions)
    (place / "records.json").write_text("[17, nonsense]\n")
    result = bench.compile(convolutions, settings={"tune": "0"})
    assert "0 of" in result.notes[0]
    assert (place / "records.damaged").read_text() == "[17, nonsense]\n"


def test_two_at_once_write_to_two_folders(own_home: Path) -> None:
    records = _part("records")
    here = _part("machine").this_one(2)
    first, second = records.Records(here), records.Records(here)
    assert first.folder != second.folder
    first.close()
    third = records.Records(here)
    assert third.folder == first.folder
    second.close()
    third.close()


def test_a_cache_that_cannot_be_written_to(
    bench: Any, convolutions: Any, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found serves the one build."""
    (own_home / "tvm").write_text("a file in the way")
    result = bench.compile(convolutions, settings={"tune": "2"})
    assert "tuned by" in result.notes[0]
    assert "0 of" not in result.notes[0]


def test_the_records_that_come_with_deploykit_fit_their_kernels() -> None:
    """Each is applied to its workload: a record of another release would be refused here."""
    import tvm
    from tvm import s_tir
    from tvm.s_tir.meta_schedule.database import JSONDatabase

    records = _part("records")
    paths = sorted(records.STARTERS.glob("*.json.xz"))
    assert "x86_64-16x32.json.xz" in [path.name for path in paths]
    for path in paths:
        assert path.stat().st_size < 1 << 20
        tables = json.loads(lzma.decompress(path.read_bytes()))
        assert len(tables[records.RECORDS]) >= 20
        database = records._starter(path.name.removesuffix(".json.xz"))
        assert not isinstance(database, JSONDatabase)  # in memory
        for record in database.get_all_tuning_records():
            plan = s_tir.Schedule(record.workload.mod)
            record.trace.apply_to_schedule(plan, remove_postproc=False)
            assert isinstance(plan.mod, tvm.IRModule)


def test_the_class_of_processors_decides_which_records_serve() -> None:
    records, machine = _part("records"), _part("machine")
    kinds = {
        cpu: records.kind_of(
            machine.another(Hardware(name=cpu, triple="x86_64-linux-gnu", cpu=cpu), 2)
        )
        for cpu in ("x86-64-v2", "x86-64-v3", "x86-64-v4", "sapphirerapids", "znver4")
    }
    assert kinds["x86-64-v4"] == kinds["sapphirerapids"] == kinds["znver4"] == "x86_64-16x32"
    assert kinds["x86-64-v3"] == "x86_64-8x16"
    assert kinds["x86-64-v2"] == "x86_64-4x16"
