import hashlib
import html
import json
import re
import shlex
from pathlib import Path

import pytest

from .conftest import Command


def test_of_a_run(
    command: Command, classifier: Path, training_data: Path, quick: list[str], tmp_path: Path
) -> None:
    output, page = tmp_path / "pruned.onnx", tmp_path / "page.html"
    command("prune", classifier, "-o", output, "--data", training_data, *quick).expect(0)
    facts = command("report", tmp_path / "pruned.run", "-o", page, "--json").expect(0).json
    assert facts["output"] == str(page)
    assert facts["size_bytes"] == page.stat().st_size
    assert "conv.weight" in page.read_text(encoding="utf-8")
    outcome = command("report", tmp_path / "pruned.run", "-o", page).expect(0)
    assert str(page) in outcome.err


def test_a_run_is_decided_by_the_check_of_its_very_file(
    command: Command, classifier: Path, training_data: Path, quick: list[str], tmp_path: Path
) -> None:
    """The command on the page, run as it stands there, turns "Not decided" into an answer."""
    output, run_dir, page = tmp_path / "pruned.onnx", tmp_path / "pruned.run", tmp_path / "p.html"
    data = ["--data", training_data, "--eval-data", training_data]
    command("prune", classifier, "-o", output, *data, *quick).expect(0)

    def answer(*options: object) -> str:
        command("report", run_dir, "-o", page, *options).expect(0)
        (text,) = re.findall(r'data-key="ship">.*?class="value">([^<]*)<', page.read_text())
        return text

    assert answer() == "Not decided"
    (line,) = re.findall(r"<code>(onnxprune check .*?) &gt; (\S*)", page.read_text())
    arguments, target = shlex.split(html.unescape(line[0])), Path(line[1])
    assert target == run_dir / "check.json"
    policy = tmp_path / "policy.toml"
    policy.write_text("[sparsity]\nmin = 0.5\n")
    arguments[arguments.index("policy.toml")] = str(policy)
    result = command(*arguments[1:]).expect(0)
    target.write_text(result.out, encoding="utf-8")
    assert result.json["model_sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
    assert answer() == "Yes"
    policy.write_text("[sparsity]\nmin = 0.99\n")
    elsewhere = tmp_path / "gate.json"
    elsewhere.write_text(command(*arguments[1:]).expect(1).out, encoding="utf-8")
    assert answer("--check", elsewhere) == "No"
    other = command("check", classifier, "--policy", policy, "--json").expect(1)
    elsewhere.write_text(other.out, encoding="utf-8")
    assert answer("--check", elsewhere) == "Not decided"
    outcome = command("report", elsewhere, "-o", page, "--check", elsewhere).expect(2)
    assert "--check goes with the page of one run" in outcome.err


def test_a_run_records_what_its_layers_cost(
    command: Command, classifier: Path, training_data: Path, quick: list[str], tmp_path: Path
) -> None:
    output, run_dir = tmp_path / "pruned.onnx", tmp_path / "pruned.run"
    latency = ["--set", "validate.latency=true", "--set", "validate.latency_seconds=1.0"]
    command("prune", classifier, "-o", output, "--data", training_data, *quick, *latency).expect(0)
    results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    facts = command("inspect", output, "--json").expect(0).json
    flops = {t["name"]: t["flops"] for t in facts["tensors"] if t["prunable"]}
    zeros = {t["name"]: t["zeros"] for t in facts["tensors"] if t["prunable"]}
    dense, pruned = (results["cost"][side]["layers"] for side in ("dense", "pruned"))
    assert {layer["name"] for layer in pruned} == set(flops)
    for before, after in zip(dense, pruned, strict=True):
        assert before["multiply_adds"] == after["multiply_adds"] == flops[after["name"]] // 2
        assert before["multiply_adds_sparse"] == before["multiply_adds"]
        kept = 1 - zeros[after["name"]] / after["size"]
        assert after["multiply_adds_sparse"] == pytest.approx(after["multiply_adds"] * kept)
        assert before["ms"] >= 0
        assert after["ms"] >= 0
    models = results["latency"]["models"]
    assert all("cost" not in model and "quantiles_ms" not in model for model in models)
    assert all(model["samples"] for model in models)


def test_the_schedule_on_the_page_is_that_of_the_log(
    command: Command, classifier: Path, training_data: Path, quick: list[str], tmp_path: Path
) -> None:
    output, run_dir = tmp_path / "pruned.onnx", tmp_path / "pruned.run"
    options = ["--data", training_data, "--method", "cascade-gmp", "--epochs", 16]
    strong = ("finetune.lr=0.2", "finetune.weight_decay=0.05", "schedule.events=4")
    greedy = ("schedule.end=0.9", "cascade.tau=0.3", "cascade.harvest_cost=10.0")
    settings = [part for setting in (*strong, *greedy) for part in ("--set", setting)]
    command("prune", classifier, "-o", output, *quick, *options, *settings).expect(0)
    command("report", run_dir).expect(0)
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="plots">(.*?)</script>', text)
    plots = {plot["key"]: plot["figure"]["data"] for plot in json.loads(data)}
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    events = [entry for entry in map(json.loads, lines) if entry["kind"] == "event"]
    assert sum(event["harvested"] for event in events) > 0
    closure, harvest, magnitude = plots["events"]
    assert closure["x"] == [event["step"] for event in events]
    assert closure["y"] == [event["closed"] for event in events]
    assert harvest["y"] == [event["harvested"] for event in events]
    parts = zip(closure["y"], harvest["y"], magnitude["y"], strict=True)
    assert [sum(part) for part in parts] == [event["pruned"] for event in events]
    named = {trace["name"]: trace for trace in plots["quality"]}
    followed = dict(zip(named["sparsity"]["x"], named["sparsity"]["y"], strict=True))
    planned = dict(zip(named["planned sparsity"]["x"], named["planned sparsity"]["y"], strict=True))
    schedule = json.loads((run_dir / "plan.json").read_text(encoding="utf-8"))["schedule"]
    for event in events:
        assert followed[event["step"]] == pytest.approx(event["sparsity"], rel=1e-5)
        assert planned[event["step"]] == pytest.approx(event["target_sparsity"], rel=1e-5)
    for event in schedule:
        assert planned[event["step"]] == pytest.approx(event["sparsity"], rel=1e-5)


def test_bad_input(command: Command, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    outcome = command("report", tmp_path / "none", "-o", page)
    assert outcome.expect(2).out == ""
    (tmp_path / "empty").mkdir()
    outcome = command("report", tmp_path / "empty", "-o", page).expect(2)
    assert "neither a run nor a probe" in outcome.err
    assert command("report", tmp_path / "empty").expect(2).err == outcome.err
    command("report", tmp_path / "empty", "-o", tmp_path / "missing" / "page.html").expect(2)
    assert not page.exists()
    assert not list(tmp_path.glob(".*.tmp"))


def test_of_several_runs(
    command: Command, classifier: Path, training_data: Path, quick: list[str], tmp_path: Path
) -> None:
    folders = []
    for sparsity in ("0.5", "0.8"):
        output = tmp_path / f"at{sparsity}.onnx"
        options = ["--data", training_data, "--sparsity", sparsity, *quick]
        command("prune", classifier, "-o", output, *options).expect(0)
        folders.append(tmp_path / f"at{sparsity}.run")
    page = tmp_path / "comparison.html"
    facts = command("report", *folders, "-o", page, "--json").expect(0).json
    assert facts["size_bytes"] == page.stat().st_size
    text = page.read_text(encoding="utf-8")
    assert "sparsity.target" in text
    assert "seed" not in re.findall(r"<th scope=\"row\">([^<]*)</th>", text)
    missing = command("report", *folders)
    assert "name it with -o" in missing.expect(2).err


def test_of_a_bench(command: Command, classifier: Path, tmp_path: Path) -> None:
    options = ["--seconds", 1, "--rounds", 5, "--json"]
    result = command("bench", classifier, classifier, *options).expect(0).out
    file, page = tmp_path / "bench.json", tmp_path / "bench.html"
    file.write_text(result, encoding="utf-8")
    assert "name it with -o" in command("report", file).expect(2).err
    command("report", file, "-o", page).expect(0)
    text = page.read_text(encoding="utf-8")
    assert "Latency of 2 models" in text
    assert f"{classifier.name} (1)" in text
    assert f"{classifier.name} (2)" in text
    assert f"{classifier} (2): " in json.loads(result)["verdict"]


def test_a_run_without_an_evaluation_does_not_keep_others_off_the_page(
    command: Command, classifier: Path, training_data: Path, quick: list[str], tmp_path: Path
) -> None:
    command(
        "prune", classifier, "-o", tmp_path / "good.onnx", "--data", training_data, *quick
    ).expect(0)
    plain = ["--epochs", 0, "--set", "validate.latency=false"]
    for name in ("bare", "bare2"):
        command("prune", classifier, "-o", tmp_path / f"{name}.onnx", *plain).expect(0)
    page = tmp_path / "new" / "comparison.html"
    outcome = command(
        "report", tmp_path / "good.run", tmp_path / "bare.run", "-o", page, "--json"
    ).expect(0)
    reason = "it was not evaluated on data"
    assert outcome.json["left_out"] == {"bare.run": reason}
    assert f"left out: bare.run: {reason}" in outcome.err
    assert f"Left out: bare.run, {reason}." in page.read_text(encoding="utf-8")
    none = command("report", tmp_path / "bare.run", tmp_path / "bare2.run", "-o", page)
    assert f"bare2.run: {reason}" in none.expect(2).err
