import pytest

from onnxprune.validate.operator_times import (
    KernelTime,
    OperatorTime,
    operator_times,
    summarise_events,
)


def kernel(name, op_type, start, micros):
    return {
        "name": f"{name}_kernel_time",
        "ts": start,
        "dur": micros,
        "args": {"op_name": op_type},
    }


def test_medians_over_calls_after_the_warm_ones():
    events = [{"name": "model_run", "ts": 0, "dur": 99999}]
    for call in range(23):
        slow = 100 if call < 3 else 1
        events += [
            kernel("c1", "Conv", call * 10, 3000 * slow),
            kernel("c2", "Conv", call * 10 + 1, 4000),
            kernel("r", "Relu", call * 10 + 2, 1000 if call != 9 else 50000),
        ]
    kernels = summarise_events(events[::-1])
    assert kernels == [
        KernelTime("c1", "Conv", 3.0),
        KernelTime("c2", "Conv", 4.0),
        KernelTime("r", "Relu", 1.0),
    ]
    assert operator_times(kernels) == [
        OperatorTime("Conv", 2, 7.0, pytest.approx(7 / 8)),
        OperatorTime("Relu", 1, 1.0, pytest.approx(1 / 8)),
    ]


def test_a_node_that_runs_for_each_sample_counts_once_and_the_loop_around_it_not_at_all():
    events = [kernel("loop", "Scan", call * 100, 9999) for call in range(5)]
    events += [
        kernel("c", "Conv", call * 100 + sample, 1000 * (sample + 1))
        for call in range(5)
        for sample in range(3)
    ]
    assert summarise_events(events, calls=5) == [KernelTime("c", "Conv", 6.0)]


def test_an_empty_profile():
    assert summarise_events([]) == []
    assert operator_times([]) == []
