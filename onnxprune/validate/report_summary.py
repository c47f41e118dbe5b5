"""The top of the report: what was asked and what came out, in words and key figures."""

from dataclasses import dataclass
from typing import Literal

from onnxprune.validate import report_format as fmt
from onnxprune.validate.run_record import Results, RunRecord, Speedup

_NARROW = 0.03

Tone = Literal["neutral", "good", "bad", "unsure"]


@dataclass(frozen=True)
class KeyFigure:
    """One tile: `value` is what came out, `detail` puts it in relation."""

    key: str
    label: str
    value: str
    detail: str
    tone: Tone = "neutral"


@dataclass(frozen=True)
class Summary:
    """A heading, sentences and tiles."""

    status: str
    status_text: str
    asked: str
    outcome: list[str]
    figures: list[KeyFigure]


def summarize(run: RunRecord) -> Summary:
    """The summary of a run, finished or not."""
    status, status_text = _status(run)
    if run.results is None:
        return Summary(status, status_text, _asked_by_recipe(run), [], _progress_figures(run))
    results = run.results
    figures = [_sparsity_figure(results), _quality_figure(results)]
    figures += [_size_figure(results), _latency_figure(results)]
    return Summary(
        status=status,
        status_text=status_text,
        asked=_asked(results),
        outcome=[
            _sparsity_sentence(results),
            quality_sentence(results),
            _size_sentence(results),
            latency_sentence(results),
        ],
        figures=[figure for figure in figures if figure is not None],
    )


def main_metric(results: Results) -> str | None:
    """The metric that stands for the quality of the pruned model."""
    if results.validation is None:
        return None
    measured = results.validation.pruned
    return next(
        (name for name in ("top1", "accuracy", "agreement") if name in measured), None
    ) or next(iter(measured), None)


def quality_sentence(results: Results) -> str:
    """Accuracy of both models and how far the difference can be trusted."""
    validation, metric = results.validation, main_metric(results)
    if validation is None or metric is None:
        return "The pruned model was not validated on data."
    samples = validation.samples
    on = "" if samples is None else f" on {fmt.count(samples)} {_sample_kind(results)}"
    pruned = validation.pruned[metric]
    dense = validation.dense.get(metric)
    if metric == "agreement":
        return f"It gives the dense model's answer in {fmt.percent(pruned)} of cases{on}."
    if dense is None or pruned is None:
        return f"{fmt.capital(fmt.metric_name(metric))} is {fmt.metric_value(metric, pruned)}{on}."
    difference = pruned - dense
    verb = "fell" if difference < 0 else "rose" if difference > 0 else "stayed"
    text = (
        f"Under ONNX Runtime {fmt.metric_name(metric)} {verb} from "
        f"{fmt.metric_value(metric, dense)} to {fmt.metric_value(metric, pruned)}, "
        f"{fmt.metric_difference(metric, difference)}{on}"
    )
    found = validation.against_dense.get(metric)
    if found is not None:
        low, high = (fmt.metric_difference(metric, end) for end in (found.low, found.high))
        chance = found.low <= 0 <= found.high
        text += f" (95 % interval {low} to {high}: {'may be' if chance else 'more than'} chance)"
    return f"{text}."


def latency_sentence(results: Results) -> str:
    """What the paired bench allows to be said about speed, and nothing more."""
    speedup = pruned_speedup(results)
    if speedup is None:
        return "Latency was not measured."
    interval = f"95 % interval {fmt.interval(speedup.low, speedup.high)}"
    measured = f"{fmt.ratio(speedup.ratio)} the dense model's speed ({interval})"
    kind = speed_verdict(speedup)
    if kind == "faster":
        return f"Faster: it runs at {measured} in paired runs."
    if kind == "slower":
        return f"Slower: it runs at {measured} in paired runs."
    if kind == "inconclusive":
        return (
            f"Speed is undecided: {measured}; the machine was too noisy, or the rounds too few, "
            "to tell a difference."
        )
    reason = (
        "zeroed channels are still computed as long as the graph holds them"
        if results.pattern == "channel"
        else f"{results.pattern} zeros on a dense kernel, which multiplies them like any number"
    )
    return f"No speedup: it runs at {measured}; {reason}."


def speed_verdict(speedup: Speedup) -> Literal["faster", "slower", "same", "inconclusive"]:
    """Which statement the interval supports; within ±3 % counts as the same speed."""
    if speedup.low >= 1 - _NARROW and speedup.high <= 1 + _NARROW:
        return "same"
    if speedup.low > 1:
        return "faster"
    if speedup.high < 1:
        return "slower"
    return "same" if speedup.high - speedup.low <= 2 * _NARROW else "inconclusive"


def pruned_speedup(results: Results) -> Speedup | None:
    """The speedup of the pruned model, where it was measured."""
    if results.latency is None or len(results.latency.models) < 2:
        return None
    return results.latency.models[1].speedup


def _sample_kind(results: Results) -> str:
    data = results.data.get("eval")
    return "held-out samples" if data is not None and data.held_out else "evaluation samples"


def _status(run: RunRecord) -> tuple[str, str]:
    total = run.total_steps
    at = f"step {fmt.count(run.last_step)}"
    if total:
        at += f" of {fmt.count(total)}"
    texts = {
        "finished": "Finished",
        "running": f"Still running, at {at}",
        "interrupted": f"Interrupted at {at}",
        "failed": f"Failed at {at}",
    }
    return run.info.status, texts[run.info.status]


def _asked(results: Results) -> str:
    text = (
        f"Asked: {fmt.percent(results.target_sparsity)} of the prunable weights to zero, "
        f"method {results.method}, pattern {results.pattern}"
    )
    train = results.data.get("train")
    if train is not None and train.samples:
        kind = "" if train.labelled is None else "labelled " if train.labelled else "unlabelled "
        text += f", fine-tuned on {fmt.count(train.samples)} {kind}samples"
    if results.seed is not None:
        text += f", seed {results.seed}"
    return f"{text}."


def _asked_by_recipe(run: RunRecord) -> str:
    sparsity = run.recipe.get("sparsity")
    section = sparsity if isinstance(sparsity, dict) else {}
    parts = []
    target = run.plan.get("target_sparsity", section.get("target"))
    if isinstance(target, int | float):
        parts.append(f"{fmt.percent(target)} of the prunable weights to zero")
    for key in ("method", "pattern"):
        value = run.plan.get(key, section.get(key))
        if isinstance(value, str):
            parts.append(f"{key} {value}")
    return f"Asked: {', '.join(parts)}." if parts else "What was asked is in the recipe below."


def _progress_figures(run: RunRecord) -> list[KeyFigure]:
    total = run.total_steps
    share = f"{fmt.percent(run.last_step / total, 0)} of the training" if total else ""
    step = f"{fmt.count(run.last_step)} of {fmt.count(total)}" if total else str(run.last_step)
    figures = [KeyFigure("step", "Step", step, share)]
    sparsities = [(point.step, point.sparsity) for point in run.events]
    sparsities += [(p.step, p.sparsity) for p in run.train if p.sparsity is not None]
    if sparsities:
        target = run.plan.get("target_sparsity")
        asked = f"{fmt.percent(target)} asked" if isinstance(target, int | float) else ""
        sparsity = max(sparsities)[1]
        figures.append(KeyFigure("sparsity", "Sparsity so far", fmt.percent(sparsity), asked))
    if run.evals and run.evals[-1].metrics:
        last = run.evals[-1]
        metric, value = next(iter(last.metrics.items()))
        figures.append(
            KeyFigure(
                "quality",
                f"Last {fmt.metric_name(metric)}",
                fmt.metric_value(metric, value),
                f"at step {fmt.count(last.step)}, in training",
            )
        )
    if run.train and run.train[-1].loss is not None:
        figures.append(KeyFigure("loss", "Last training loss", fmt.number(run.train[-1].loss), ""))
    return figures


def _zeros(results: Results) -> tuple[int, int]:
    prunable = [tensor for tensor in results.tensors if tensor.prunable]
    total = sum(tensor.size for tensor in prunable)
    return total - sum(tensor.nonzeros for tensor in prunable), total


def _sparsity_figure(results: Results) -> KeyFigure:
    reached = results.sparsity >= results.target_sparsity - 1e-9
    return KeyFigure(
        "sparsity",
        "Sparsity",
        fmt.percent(results.sparsity),
        f"{fmt.percent(results.target_sparsity)} asked",
        "good" if reached else "bad",
    )


def _sparsity_sentence(results: Results) -> str:
    zeros, total = _zeros(results)
    text = f"{fmt.percent(results.sparsity)} of the prunable weights are zero"
    if total:
        text += f": {fmt.count(zeros)} of {fmt.count(total)}"
    if results.sparsity < results.target_sparsity - 1e-9:
        text += ", less than was asked"
    if results.dead_weights:
        text += (
            f". Of those that are kept, {fmt.count(results.dead_weights)} do nothing: no path "
            "leads through them"
        )
    channels = results.dead_channels
    if channels is not None and (channels.inputs or channels.outputs):
        text += (
            f". {fmt.count(channels.inputs)} in channels and "
            f"{fmt.count(channels.outputs)} out channels of pruned tensors have no weight left "
            "that does anything"
        )
    return f"{text}."


def _quality_figure(results: Results) -> KeyFigure | None:
    validation, metric = results.validation, main_metric(results)
    if validation is None or metric is None:
        return None
    pruned, dense = validation.pruned[metric], validation.dense.get(metric)
    label = fmt.capital(fmt.metric_name(metric))
    if metric == "agreement" or pruned is None or dense is None:
        return KeyFigure("quality", label, fmt.metric_value(metric, pruned), "under ONNX Runtime")
    difference = pruned - dense
    detail = f"{fmt.metric_value(metric, dense)} dense, {fmt.metric_difference(metric, difference)}"
    return KeyFigure("quality", label, fmt.metric_value(metric, pruned), detail)


def _size_figure(results: Results) -> KeyFigure | None:
    sizes = results.size_bytes
    if sizes is None:
        return None
    return KeyFigure("size", "File size", fmt.size(sizes.pruned), f"{fmt.size(sizes.dense)} dense")


def _size_sentence(results: Results) -> str:
    sizes = results.size_bytes
    if sizes is None or not sizes.dense:
        return "File sizes were not recorded."
    change = sizes.pruned / sizes.dense - 1
    if abs(change) < 0.02:
        return f"The file stays at {fmt.size(sizes.pruned)}: zeros are stored like any other value."
    word = "shrinks" if change < 0 else "grows"
    return (
        f"The file {word} from {fmt.size(sizes.dense)} to {fmt.size(sizes.pruned)} "
        f"({fmt.percent(abs(change), 0)} {'less' if change < 0 else 'more'})."
    )


def _latency_figure(results: Results) -> KeyFigure | None:
    speedup = pruned_speedup(results)
    if speedup is None:
        return None
    tones: dict[str, Tone] = {
        "faster": "good",
        "slower": "bad",
        "same": "neutral",
        "inconclusive": "unsure",
    }
    words = {"same": "no speedup", "inconclusive": "undecided"}
    verdict = speed_verdict(speedup)
    return KeyFigure(
        "speed",
        "Speed against dense",
        fmt.ratio(speedup.ratio),
        f"{words.get(verdict, verdict)}, 95 % interval {fmt.interval(speedup.low, speedup.high)}",
        tones[verdict],
    )
