"""`onnxprune inspect`: what a model holds, and whether its metadata are true."""

from typing import Any

import click

from onnxprune.cli import common

_SPARSE = ("SparseConv", "SparseMatMul", "SparseExpandDepthwise")


@click.command("inspect")
@click.argument("model")
@click.option("--all", "show_all", is_flag=True, help="List every stored tensor, not only weights.")
@common.json_option
def command(model: str, show_all: bool, as_json: bool) -> None:
    """Show the tensors of MODEL, what can be pruned, its sparsity, and metadata against fact.

    \b
    Example:
      onnxprune inspect model.onnx
      onnxprune inspect pruned.onnx --json
    """
    from onnxprune.validate import inspect_model

    facts = inspect_model(model).to_json()
    if as_json:
        common.print_json(facts)
        return
    _print_facts(facts, show_all)


def _print_facts(facts: dict[str, Any], show_all: bool) -> None:
    from rich.table import Table

    console = common.output_console()
    table = Table("tensor", "operator", "shape", "zeros", "sparsity", "pattern", "prunable")
    for tensor in facts["tensors"]:
        if show_all or tensor["prunable"]:
            table.add_row(
                tensor["name"],
                tensor["op_type"],
                "×".join(map(str, tensor["shape"])),
                f"{tensor['zeros']:,}",
                common.percent(tensor["sparsity"]),
                tensor["pattern"],
                "yes" if tensor["prunable"] else "",
            )
    console.print(table)
    flops = facts.get("flops")
    console.print(
        f"{facts['path']}: opset {facts['opset']}, IR version {facts['ir_version']}, "
        f"{facts['parameters']:,} parameters, {facts['prunable_parameters']:,} of them prunable"
        + (f", {flops / 1e9:.3f} GFLOP a sample" if flops else "")
    )
    console.print(f"sparsity of the prunable weights: {common.percent(facts['sparsity'], 4)}")
    if facts["compiled_true"] is not None:
        operators = sum(facts["operators"].get(f"onnxprune::{name}", 0) for name in _SPARSE)
        source = (facts["compiled"] or {}).get("source_sha256")
        console.print(
            f"compiled: {operators} sparse operators, made from a file of digest {source}"
        )
        _print_truth("record of compiling", facts["compiled_true"], facts["compiled_problems"])
    if facts["metadata_true"] is None:
        console.print("no sparsity metadata")
    else:
        _print_truth("sparsity metadata", facts["metadata_true"], facts["metadata_problems"])


def _print_truth(what: str, true: bool, problems: list[str]) -> None:
    console = common.output_console()
    if true:
        console.print(f"{what}: every statement that the file can answer holds")
        return
    console.print(f"{what}: NOT TRUE")
    for problem in problems:
        console.print(f"  - {problem}")
