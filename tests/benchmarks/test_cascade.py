import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path[:0] = [str(FOLDER), str(FOLDER / "cascade")]

import kept_sets  # noqa: E402
import methods  # noqa: E402
import phase_map  # noqa: E402
import rewinding  # noqa: E402
import tables  # noqa: E402
from analysis import front, interval, paired, rank_correlation  # noqa: E402
from data import CHARACTERS, Sizes, prepare  # noqa: E402
from lab import Job, Journal, Lab, Unfinished  # noqa: E402
from matplotlib import pyplot  # noqa: E402
from networks import NETWORKS, write_untrained  # noqa: E402
from plots import Band, Panel, draw  # noqa: E402
from probes import Point  # noqa: E402
from real_tasks import targets_of  # noqa: E402
from runs import Run, load_masks, supported  # noqa: E402
from scales import SCALES, Options  # noqa: E402

from onnxprune.importer import load  # noqa: E402

TINY = replace(
    SCALES["quick"], sizes=Sizes(64, 32, 32, 14), dense_epochs=1.0, workers=0, seeds=(0,)
)


def options(folder: Path, **changed: Any) -> Options:
    settings = {
        "scale": TINY,
        "scale_name": "quick",
        "work": folder,
        "fashion": folder / "no fashion",
        "deadline": None,
        "partial": False,
        "results": folder / "results",
        "name": "tiny",
    }
    return Options(**settings | changed)


def test_the_interval_is_that_of_students_t() -> None:
    found = interval([0.80, 0.82, 0.87])

    assert found.mean == pytest.approx(0.83)
    # 4.3027 * 0.0360555 / sqrt(3)
    assert found.high - found.mean == pytest.approx(0.089567, abs=1e-5)
    assert found.mean - found.low == pytest.approx(0.089567, abs=1e-5)


def test_differences_are_paired_by_seed() -> None:
    found = paired({0: 0.9, 1: 0.5, 2: 0.7}, {2: 0.6, 1: 0.4, 5: 0.0})

    assert found is not None
    assert found.count == 2
    assert found.mean == pytest.approx(0.1)
    assert found.high - found.low == pytest.approx(0.0, abs=1e-12)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_the_front_has_what_nothing_cheaper_beats() -> None:
    points = [(3, 0.9), (1, 0.5), (2, 0.4), (2, 0.7), (4, 0.9)]

    assert front(points, lambda p: p[0], lambda p: p[1]) == [(1, 0.5), (2, 0.7), (3, 0.9)]


def test_rank_correlation_shares_ranks_of_equal_values() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 100, 1000, 2000]) == pytest.approx(1.0)
    # Ranks 0, 1.5, 1.5, 3 against 3, 1, 2, 0.
    expected = -4.5 / math.sqrt(4.5 * 5)
    assert rank_correlation([1, 2, 2, 9], [9, 2, 3, 1]) == pytest.approx(expected)
    assert rank_correlation([1, 1], [1, 2]) is None


def test_glyphs_are_the_same_for_the_same_sizes_and_parts_differ(tmp_path: Path) -> None:
    sizes = Sizes(40, 20, 20, 14)
    first, again = (prepare("glyphs", sizes, tmp_path / name) for name in ("a", "b"))

    arrays = {}
    for part in ("train", "valid", "test"):
        with np.load(getattr(first, part)) as one, np.load(getattr(again, part)) as two:
            assert np.array_equal(one["image"], two["image"])
            assert np.array_equal(one["label"], two["label"])
            arrays[part] = one["image"], one["label"]
    images, labels = arrays["train"]
    assert images.shape == (40, 1, 14, 14)
    assert images.dtype == np.float32
    assert set(labels.tolist()) <= set(range(len(CHARACTERS)))
    assert len(set(labels.tolist())) > 15
    assert not np.array_equal(arrays["valid"][0], arrays["test"][0])


def test_fashion_is_read_from_idx_files_and_averaged(tmp_path: Path) -> None:
    import gzip

    def write(name: str, values: np.ndarray) -> None:
        header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
        (tmp_path / name).write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))

    images = np.zeros((6, 28, 28))
    images[0, :2, :2] = [[40, 80], [120, 160]]
    images[5, -2:, -2:] = 200
    write("train-images-idx3-ubyte.gz", images)
    write("train-labels-idx1-ubyte.gz", np.arange(6))
    write("t10k-images-idx3-ubyte.gz", images[:2])
    write("t10k-labels-idx1-ubyte.gz", np.array([8, 9]))

    parts = prepare("fashion", Sizes(4, 2, 2, 14), tmp_path / "made", tmp_path)

    with np.load(parts.train) as train, np.load(parts.valid) as valid, np.load(parts.test) as test:
        assert train["label"].tolist() == [0, 1, 2, 3]
        assert valid["label"].tolist() == [4, 5]
        assert test["label"].tolist() == [8, 9]
        # The mean of the first square is 100; grey levels are taken less 90 and over 80.
        assert train["image"][0, 0, 0, 0] == pytest.approx((100 - 90) / 80)
        assert train["image"][0, 0, 0, 1] == pytest.approx(-90 / 80)
        assert valid["image"][1, 0, -1, -1] == pytest.approx((200 - 90) / 80)


def test_without_fashion_one_is_told_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="apt-get install dataset-fashion-mnist"):
        prepare("fashion", Sizes(4, 2, 2, 14), tmp_path, tmp_path / "missing")


@pytest.mark.parametrize("name", ["resnet8", "mobilenet-tiny"])
def test_networks_are_written_with_all_batchnorms_apart(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    write_untrained(name, 10, 14, 3, path)

    imported = load(path)
    proto = onnx.load(path)
    norms = [node for node in proto.graph.node if node.op_type == "BatchNormalization"]
    native = NETWORKS[name](10)
    assert len({norm.input[1] for norm in norms}) == len(norms) > 5
    assert len(imported.tensor_names) == len(list(native.parameters()))
    assert not proto.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")


def test_other_seeds_give_other_weights(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_untrained("resnet8", 10, 14, seed, tmp_path / name)

    first, again, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == again
    assert first != other


def test_the_journal_keeps_what_is_done_and_passes_over_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).add({"a": 1, "b": (2, 3)}, {"accuracy": 0.5})
    with path.open("a") as stream:
        stream.write('{"digest": "x", "ent')

    journal = Journal(path)

    assert journal.find({"b": [2, 3], "a": 1}) == {"accuracy": 0.5}
    assert journal.find({"a": 2, "b": (2, 3)}) is None


def test_when_the_time_is_up_nothing_is_lost(tmp_path: Path) -> None:
    done = []

    def work(stop: Any) -> dict[str, Any]:
        done.append(len(done))
        return {"accuracy": float(len(done))}

    jobs = [Job({"number": number}, work, str(number)) for number in range(3)]
    Lab(options(tmp_path)).jobs(jobs[:1])

    with pytest.raises(Unfinished, match="1 of 3 jobs are done"):
        Lab(options(tmp_path, deadline=0.0)).jobs(jobs)
    partial = Lab(options(tmp_path, deadline=0.0, partial=True)).jobs(jobs)
    entries = Lab(options(tmp_path)).jobs(jobs)

    assert partial == [{"accuracy": 1.0}, None, None]
    assert entries == [{"accuracy": 1.0}, {"accuracy": 2.0}, {"accuracy": 3.0}]
    assert len(done) == 3


def test_a_run_prunes_exactly_and_is_not_done_twice(tmp_path: Path) -> None:
    run = Run("resnet8", "glyphs", "gmp", 0.9, 1.0, 0, pruning_end=0.5)
    lab = Lab(options(tmp_path))

    (entry,) = lab.runs([run])
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    (again,) = Lab(options(tmp_path)).runs([run])

    assert entry is not None
    assert entry == again
    assert len(lines) == 2  # the dense model, and the run
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 2
    kept = load_masks(lab.place.masks(run))
    weights = sum(mask.numel() for mask in kept.values())
    zeros = sum(int((~mask).sum()) for mask in kept.values())
    assert zeros == math.ceil(0.9 * weights)
    assert entry["samples"] == 32
    assert 0 < entry["overlap_with_start"] < 1
    cost = entry["budget"]
    assert 0.1 < cost["mean_density"] < 1
    assert cost["training_flops"] < cost["training_flops_dense"]
    left = {path.suffix for path in (tmp_path / "runs").iterdir()}
    assert left == {".onnx"}  # no run directory
    assert lab.place.dense("resnet8", "glyphs", 0).is_file()


def test_unknown_methods_are_found_out() -> None:
    assert supported("iterative weights")
    assert supported("one-shot random")
    assert not supported("no-such-method")
    assert not supported("gmp", {"sparsity": {"no_such_key": 1}})


def test_tuning_takes_the_best_and_lends_it_to_those_without(tmp_path: Path) -> None:
    lab = Lab(options(tmp_path))
    grid = methods.tuning_runs("resnet8", "glyphs", "gmp", methods.QUICK, lab)
    scores = [{"accuracy": 0.1 * n} for n in range(len(grid))]
    scores[-1] = {"failed": "diverged"}

    tuning = methods.Tuning(grid, scores)

    assert len(grid) == 4
    assert {run.judged_on for run in grid} == {"valid"}
    assert tuning.best("random", 0.9) == grid[2]
    assert tuning.best("gmp", 0.9, end=0.3) == grid[2]
    assert tuning.best("gmp", 0.9, end=0.65) == grid[1]
    assert tuning.best("gmp", 0.5) is None
    assert tuning.at_edge(grid[2]) == ["lr", "pruning_end"]
    assert [point["accuracy"] for point in tuning.to_json()] == [0.2, 0.1, 0.0, 0.0]
    runs = list(
        methods.comparison_runs("resnet8", "glyphs", ["random"], methods.QUICK, tuning, lab)
    )
    assert [(run.method, run.judged_on, run.seed, run.lr) for run in runs] == [
        ("random", "test", 0, grid[2].lr)
    ]


def test_the_short_plan_tunes_at_two_sparsities_and_has_no_cost_stage(tmp_path: Path) -> None:
    lab, plan = Lab(options(tmp_path)), methods.PLANS["short"]
    grid = methods.tuning_runs("resnet8", "glyphs", "gmp", plan, lab)
    scores = [{"accuracy": 0.1 if run.lr == 0.2 else 0.0} for run in grid]
    tuning = methods.Tuning(grid, scores)
    place = ("resnet8", "glyphs", ["gmp", "one-shot"], plan, tuning, lab)

    assert [run.sparsity for run in grid] == [0.98] * 6 + [0.9] * 6
    runs = list(methods.comparison_runs(*place))
    assert [run.sparsity for run in runs] == [0.98, 0.98, 0.95, 0.95, 0.9, 0.9]
    assert {run.lr for run in runs} == {0.2}
    assert plan.tuning_of(0.95) == 0.98
    assert list(methods.cost_runs(*place)) == []


def test_the_comparison_is_written_with_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = methods.Plan((0.9,), (0.9,), (0.1,), (5e-4,), (0.5,), (1.0,))
    monkeypatch.setattr(methods, "QUICK", plan)
    monkeypatch.setitem(SCALES, "quick", TINY)
    command = ["--quick", "--work", str(tmp_path), "--methods", "gmp", "no-such-method"]

    methods.main([*command, "--tune", "gmp"])

    record = json.loads((tmp_path / "results" / "methods_quick.json").read_text())
    assert record["settings"]["left_out"] == ["no-such-method"]
    (result,) = record["results"]
    (cell,) = result["comparison"]
    assert cell["method"] == "gmp"
    assert cell["accuracy"]["count"] == 1
    (run,) = [row for row in result["runs"] if row["seed"] == 0][:1]
    assert run["accuracy"] == pytest.approx(cell["accuracy"]["mean"], abs=1e-5)
    assert result["cost"][0]["on_front"] is True
    (overlap,) = result["overlap"]
    assert overlap["sets"] == ["gmp", kept_sets.LARGEST]
    assert overlap["jaccard"]["mean"] == pytest.approx(run["overlap_with_start"], abs=1e-5)
    plots = {path.name for path in (tmp_path / "results").glob("*.svg")}
    assert plots == {
        "methods_quick-resnet8-glyphs-sparsity.svg",
        "methods_quick-resnet8-glyphs-cost.svg",
    }


def test_a_plot_of_the_same_figures_is_the_same_file(tmp_path: Path) -> None:
    ys = [{"mean": 0.8, "low": 0.7, "high": 0.9}, {"mean": 0.6, "low": 0.6, "high": 0.6}]
    for name in ("a", "b"):
        panel = Panel("a network", "density", "accuracy", [Band("gmp", [0.1, 0.2], ys)], True, True)
        draw(tmp_path / f"{name}.svg", [panel])
        pyplot.figure()  # leaves a trace in matplotlib's counters

    first, second = ((tmp_path / f"{name}.svg").read_text() for name in ("a", "b"))
    pyplot.close("all")
    assert first == second
    assert "<svg" in first
    assert "<dc:date>" not in first


def test_a_smaller_loss_at_a_larger_gain_correlates() -> None:
    def entry(gain: float, accuracy: float) -> dict[str, Any]:
        return {
            "criteria": {"random": {"gain": gain}},
            "accuracy": {"random": accuracy, "control": 0.9},
        }

    point = Point("resnet8", "glyphs", phase_map.CENTRE_SPARSITY, 0.1, 2e-3, 1.0)
    probed = {
        replace(point, lr=lr): {seed: entry(gain, accuracy) for seed in (0, 1)}
        for lr, gain, accuracy in ((0.05, 0.0, 0.7), (0.1, 0.5, 0.8), (0.2, 1.5, 0.85))
    }

    (found,) = phase_map.together(probed)

    assert found["rank_correlation_with_gain"] == pytest.approx(1.0)
    losses = found["random_against_control"]
    assert losses["present"]["mean"] == pytest.approx(-0.05)
    assert losses["weak"]["mean"] == pytest.approx(-0.1)
    assert losses["absent"]["mean"] == pytest.approx(-0.2)


def test_the_small_grid_varies_one_thing_at_a_time() -> None:
    cells = phase_map.cells_of("cpu")

    assert len(cells) == len(set(cells)) == 9 + 6 - 1
    assert len(phase_map.cells_of("gpu")) == 6 * 9


def test_arms_are_probed_on_the_dense_model_of_each_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCALES, "quick", TINY)

    phase_map.main(["--quick", "--work", str(tmp_path)])

    record = json.loads((tmp_path / "results" / "phase_map_quick.json").read_text())
    random, magnitude = record["results"]["points"]
    assert (random["criterion"], magnitude["criterion"]) == ("random", "magnitude")
    assert random["gain"]["verdict"] == "inconclusive"  # one seed
    assert len(random["gain"]["values"]) == 1
    assert [step for step, *_ in random["curve"]] == [1, 2]
    assert random["against_control"]["count"] == 1
    assert random["by_seed"] == {"0": random["accuracy"]["mean"]}
    difference = random["by_seed"]["0"] - random["control_by_seed"]["0"]
    assert random["against_control"]["mean"] == pytest.approx(difference, abs=1e-5)
    assert 0 < random["decay_horizon_reached"] < 1
    assert {path.suffix for path in (tmp_path / "results").iterdir()} == {".json", ".svg"}


def test_points_that_are_named_are_the_only_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Point] = []
    monkeypatch.setattr(phase_map, "probe_all", lambda points, lab: asked.extend(points) or {})
    command = ["--point", "0.6", "0.2", "0.005", "--point", "0.05", "0.4", "0.002"]

    phase_map.main([*command, "--work", str(tmp_path), "--results", str(tmp_path)])

    cells = [(p.network, p.sparsity, p.lr, p.weight_decay) for p in asked]
    assert cells == [
        (network, *cell)
        for network in ("resnet8", "mobilenet-tiny")
        for cell in ((0.6, 0.2, 0.005), (0.05, 0.4, 0.002))
    ]


def planned(
    module: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str
) -> list[Run]:
    """The runs that a command asks for."""
    asked: list[Run] = []

    class Noted(Lab):
        def runs(self, runs: Sequence[Run]) -> list[dict[str, Any] | None]:
            asked.extend(runs)
            return [None] * len(runs)

    monkeypatch.setattr(module, "Lab", Noted)
    module.main([*arguments, "--work", str(folder), "--results", str(folder)])
    return asked


def test_the_short_plan_of_rewinding_has_a_shorter_dense_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = planned(rewinding, monkeypatch, tmp_path, "--plan", "short", "--seeds", "4")

    # Rounds of five epochs; rewinding weights trains the dense model's six in the same run.
    assert [run.epochs for run in runs] == [5, 5, 11, 10, 10, 16] * 2
    assert [run.sparsity for run in runs] == [0.98] * 6 + [0.9] * 6
    assert {run.seed for run in runs} == {4}
    settings = json.loads((tmp_path / "rewinding.json").read_text())["settings"]
    assert settings["dense_epochs"] == 6


def test_the_short_plan_of_kept_sets_is_a_part_of_the_full_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = planned(kept_sets, monkeypatch, tmp_path, "--plan", "short")
    full = planned(kept_sets, monkeypatch, tmp_path)

    assert len(short) == 3 * (6 * 2 + 2 * 3)
    assert len(full) == 3 * (6 * 4 + 5 * 3)
    assert all(run in full for run in short)


def test_methods_are_tuned_at_the_sparsities_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("--plan", "short", "--sparsities", "0.95", "--stage", "tune")
    runs = planned(methods, monkeypatch, tmp_path, *command)

    assert len(runs) == 2 * 6
    assert {(run.sparsity, run.judged_on) for run in runs} == {(0.95, "valid")}


def test_methods_may_be_compared_at_other_sparsities_than_they_are_tuned_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "plot", lambda *_: None)
    command = ("--plan", "short", "--sparsities", "0.8", "0.9", "--tuned-at", "0.9", "0.9")
    runs = planned(methods, monkeypatch, tmp_path, *command)

    assert {run.sparsity for run in runs} == {0.9}
    settings = json.loads((tmp_path / "methods.json").read_text())["settings"]
    assert settings["tuned_at"] == {"0.8": 0.9, "0.9": 0.9}


def test_the_cost_stage_leaves_out_the_lowest_sparsity_in_any_order(tmp_path: Path) -> None:
    lab, plan = Lab(options(tmp_path)), replace(methods.PLANS["short"], shares=(0.5,))
    grid = methods.tuning_runs("resnet8", "glyphs", "gmp", plan, lab)
    tuning = methods.Tuning(grid, [{"accuracy": 0.5}] * len(grid))

    runs = list(methods.cost_runs("resnet8", "glyphs", ["gmp"], plan, tuning, lab))

    assert {run.sparsity for run in runs} == {0.95, 0.98}
    assert {run.epochs for run in runs} == {0.5 * TINY.epochs}


def test_patterns_are_compared_with_choosing_before() -> None:
    base = Run("resnet8", "glyphs", "gmp", 0.5, 1.0, 0)
    runs = [
        replace(base, seed=seed, tables=kept_sets.pattern_tables("2:4", choice))
        for choice in ("before", "after")
        for seed in (0, 1)
    ]
    entries = [{"accuracy": value} for value in (0.5, 0.6, 0.7, 0.9)]

    before, after = kept_sets.patterns(runs, entries)

    assert before["against_before"] is None
    assert after["against_before"]["mean"] == pytest.approx(0.25)


def test_the_page_has_the_tables_of_the_results_files() -> None:
    page = tables.PAGE.read_text(encoding="utf-8")
    for _, name, _ in tables.MARKED.findall(page):
        assert f"<!-- table {name} -->\n\n{tables.table(name)}\n\n<!-- end -->" in page, name


def test_targets_of_lines_are_filled_up() -> None:
    assert targets_of(["ab", "b"], {"a": 1, "b": 2}).tolist() == [[1, 2], [2, -1]]


def costed(method: str, accuracy: float, flops: float, end: float = 0.5) -> dict[str, Any]:
    return {
        **{"method": method, "sparsity": 0.9, "pruning_end": end, "epochs": 4},
        **{"accuracy": {"mean": accuracy}, "training_flops": flops},
    }


def test_a_point_is_compared_with_the_best_of_gmp_that_costs_no_more() -> None:
    """By 2 %, at the same sparsity, and seed by seed."""
    points = [
        costed("gmp", 0.80, 100, 0.1),
        costed("gmp", 0.84, 202, 0.2),
        costed("gmp", 0.90, 300, 0.3),
        costed("gmp", 0.99, 10, 0.4) | {"sparsity": 0.98},
        costed("cascade-gmp", 0.85, 200),
    ]
    scores = [{0: 0.8, 1: 0.8}, {0: 0.83, 1: 0.85}, {0: 0.9}, {0: 0.99}, {0: 0.85, 1: 0.86}]
    found = methods.at_cost(points[4], scores[4], points, scores)
    assert found is not None
    assert found["pruning_end"] == 0.2
    assert found["difference"]["mean"] == pytest.approx(0.015)
    cheaper = costed("cascade-gmp", 0.5, 90)
    assert methods.at_cost(cheaper, scores[4], points, scores) is None


def test_what_a_point_costs_of_the_cheapest_gmp_that_is_as_good() -> None:
    points = [costed("gmp", 0.80, 100), costed("gmp", 0.90, 300), costed("gmp", 0.95, 400)]
    assert methods.share_of_flops(costed("cascade-gmp", 0.85, 150), points) == 0.5
    assert methods.share_of_flops(costed("cascade-gmp", 0.96, 150), points) is None
