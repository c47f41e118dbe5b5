"""Whether the model of a run may ship: what a run can say of that, and what only a gate can."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from onnxprune.run_directory import CHECK_FILE, RECIPE_FILE
from onnxprune.validate import report_format as fmt
from onnxprune.validate.report_page import facts_table
from onnxprune.validate.report_plots import Table
from onnxprune.validate.report_summary import (
    KeyFigure,
    Tone,
    main_metric,
    pruned_speedup,
    speed_verdict,
)
from onnxprune.validate.result_record import GateRecord
from onnxprune.validate.run_record import Results, RunRecord

_LABEL = "May it ship?"
_NOT_BY_A_RUN = (
    "not checked: that metadata are true to the file, that inputs and outputs are those of the "
    "dense model, that outputs are finite in every provider, and your limits for accuracy, latency "
    "and size"
)


@dataclass(frozen=True)
class Decision:
    """The answer to whether a model may ship.

    Attributes:
        figure: The answer as a tile; "Yes" only where a gate passed this very file.
        sentence: Why.
        facts: What is known of what matters for it.
        commands: How to have it decided; empty where it is.
    """

    figure: KeyFigure
    sentence: str
    facts: Table
    commands: list[str]


def decide(run: RunRecord, gate: GateRecord | None) -> Decision:
    """Whether the model of a run may ship.

    Args:
        run: The run.
        gate: What a gate found, which may be of another file; None where there is none.
    """
    results = run.results
    if results is None:
        why = "there is no validated model yet"
        return Decision(_tile("No", why, "bad"), f"No: {why}.", facts_table([]), [])
    answer, detail, tone, sentence = _answer(results, gate)
    open_question = answer == "Not decided"
    return Decision(
        figure=_tile(answer, detail, tone),
        sentence=f"{answer}: {sentence}",
        facts=facts_table(_facts(results, None if open_question else gate)),
        commands=_commands(run, results) if open_question else [],
    )


def _tile(answer: str, detail: str, tone: Tone) -> KeyFigure:
    return KeyFigure("ship", _LABEL, answer, detail, tone)


def _answer(results: Results, gate: GateRecord | None) -> tuple[str, str, Tone, str]:
    """Answer, detail, tone and reason."""
    if gate is None:
        reason = (
            "a run prunes and measures, but which loss and which gain are acceptable is for a "
            "policy to say, and none was checked."
        )
        return "Not decided", "no policy was checked", "unsure", reason
    policy = Path(gate.policy).name if gate.policy else "the policy"
    if gate.model_sha256 is None or results.output_sha256 is None:
        reason = (
            "there is the result of a check, but it or the run does not record which file it is "
            "of, so it may be of another one. Check again with this version."
        )
        return "Not decided", "a check of an unknown file", "unsure", reason
    if gate.model_sha256 != results.output_sha256:
        reason = (
            f"there is the result of a check, but of another file: SHA-256 begins with "
            f"{fmt.shorten(gate.model_sha256[:12], 12)}, that of this run's model with "
            f"{fmt.shorten(results.output_sha256[:12], 12)}."
        )
        return "Not decided", "the check is of another file", "unsure", reason
    total = fmt.count(len(gate.checks))
    if gate.ships:
        reason = f"every one of the {total} checks of {policy} passed for this very file."
        return "Yes", f"all {total} checks of {policy} passed", "good", reason
    open_checks = [check for check in gate.checks if check.status != "pass"]
    names = ", ".join(fmt.shorten(check.name, 60) for check in open_checks[:8])
    more = f" and {len(open_checks) - 8} more" if len(open_checks) > 8 else ""
    count = fmt.count(len(open_checks))
    reason = f"of the {total} checks of {policy}, {count} did not pass"
    reason += f": {names}{more}." if open_checks else ", and it is not called passed."
    return "No", f"{count} of {total} checks of {policy} did not pass", "bad", reason


def _facts(results: Results, gate: GateRecord | None) -> list[tuple[str, str]]:
    reached = results.sparsity >= results.target_sparsity - 1e-9
    sparsity = f"{fmt.percent(results.sparsity)} of {fmt.percent(results.target_sparsity)} asked"
    rows = [
        ("sparsity target", f"{'reached' if reached else 'not reached'}: {sparsity}"),
        ("accuracy against dense", _accuracy(results)),
        ("export", _export(results)),
        ("latency", _latency(results)),
    ]
    if gate is None:
        return [*rows, ("everything else", _NOT_BY_A_RUN)]
    ordered = sorted(gate.checks, key=lambda check: check.status == "pass")
    found = [
        (check.name, f"{check.status}: {fmt.shorten(check.message, 300)}") for check in ordered
    ]
    return [*found, *rows]


def _accuracy(results: Results) -> str:
    metric = main_metric(results)
    if results.validation is None or metric is None:
        return "not measured: the run had no evaluation samples"
    dense, pruned = results.validation.dense.get(metric), results.validation.pruned[metric]
    if metric == "agreement" or dense is None or pruned is None:
        name, value = fmt.metric_name(metric), fmt.metric_value(metric, pruned)
        return f"{name} is {value}; against which limit, a policy has to say"
    text = f"{fmt.metric_name(metric)} changes by {fmt.metric_difference(metric, pruned - dense)}"
    found = results.validation.against_dense.get(metric)
    if found is None:
        return f"{text}; its interval was not measured"
    ends = (fmt.metric_difference(metric, end) for end in (found.low, found.high))
    return f"{text}, 95 % interval {' to '.join(ends)}"


def _latency(results: Results) -> str:
    speedup = pruned_speedup(results)
    if speedup is None:
        return "not measured"
    words = {"same": "no speedup", "inconclusive": "undecided"}
    verdict = speed_verdict(speedup)
    interval = fmt.interval(speedup.low, speedup.high)
    return f"{words.get(verdict, verdict)}: {fmt.ratio(speedup.ratio)}, 95 % interval {interval}"


def _export(results: Results) -> str:
    error = results.validation.torch_vs_runtime_max_abs_error if results.validation else None
    if error is None:
        return "not verified: without data, PyTorch and ONNX Runtime were not compared"
    return (
        "verified: on real samples the outputs of the written file under ONNX Runtime differ from "
        f"those of the trained model by at most {fmt.number(error)}"
    )


def _commands(run: RunRecord, results: Results) -> list[str]:
    """How to check the model against a policy, and to put the result on the page."""
    data = run.recipe.get("data")
    evaluation = data.get("eval") if isinstance(data, dict) else None
    spec = evaluation if isinstance(evaluation, str) else "EVALUATION_DATA"
    parts = [
        *("onnxprune", "check", results.output_path or results.output, "--policy", "policy.toml"),
        *("--baseline", results.source_path or "DENSE.onnx", "--data", spec),
        *("--recipe", str(run.path / RECIPE_FILE)),
        *(["--allow-python"] if spec.startswith("python:") else []),
    ]
    target = shlex.quote(str(run.path / CHECK_FILE))
    return [
        f"{shlex.join(parts)} --json > {target}",
        shlex.join(["onnxprune", "report", str(run.path)]),
    ]
