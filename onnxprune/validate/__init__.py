"""What can be said of a model without torch: accuracy and latency under ONNX Runtime, reports.

`onnxruntime` is imported when a session is opened, so the rest works without it.
"""

from onnxprune.validate.accuracy import EvaluationResult, ModelAccuracy, evaluate
from onnxprune.validate.compare_report import write_comparison
from onnxprune.validate.environment import describe_machine
from onnxprune.validate.flops import Flops, count_flops
from onnxprune.validate.inspection import Inspection, inspect_model
from onnxprune.validate.latency import bench
from onnxprune.validate.latency_result import BenchResult, ModelLatency
from onnxprune.validate.probe_report import write_probe_report
from onnxprune.validate.report import build_report, report_path, write_report
from onnxprune.validate.result_report import write_result_report
from onnxprune.validate.session import ModelSource, Session, available_providers, open_session
from onnxprune.validate.speedup import Speedup

__all__ = [
    "BenchResult",
    "EvaluationResult",
    "Flops",
    "Inspection",
    "ModelAccuracy",
    "ModelLatency",
    "ModelSource",
    "Session",
    "Speedup",
    "available_providers",
    "bench",
    "build_report",
    "count_flops",
    "describe_machine",
    "evaluate",
    "inspect_model",
    "open_session",
    "report_path",
    "write_comparison",
    "write_probe_report",
    "write_report",
    "write_result_report",
]
