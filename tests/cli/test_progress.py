"""Progress of a probe over all of its arms, with a clock that the test moves."""

import io

from rich.console import Console

from onnxprune.cli.progress import ProgressView

STEPS = 10


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def train_entry(step: int) -> dict[str, object]:
    facts = {"loss": 1.0, "sparsity": 0.2, "images_per_s": 9.0}
    return {"kind": "train", "step": step, "progress": step / STEPS, **facts}


def show(*, live: bool) -> str:
    """What a probe of six arms shows that goes on after three, at a second a step."""
    clock, stream = Clock(), io.StringIO()
    console = Console(file=stream, force_terminal=live, get_time=clock, width=140, markup=False)
    with ProgressView(console) as view:
        for done, name in enumerate(["magnitude", "random"], start=3):
            counts = {"done": done, "total": 6, "steps": STEPS}
            view({"kind": "arm", "name": name, "seed": 1, **counts})
            for step in range(1, STEPS + 1):
                clock.now += 1
                view(train_entry(step))
    return stream.getvalue()


def test_arms_finished_before_count_as_done_but_not_as_fast() -> None:
    lines = show(live=False).splitlines()
    assert "arm 4 of 6: magnitude, seed 1" in lines
    # Two arms of ten steps are left, at a second a step.
    assert "arm 5 of 6: random, seed 1; about 20 s left for all arms" in lines


def test_a_terminal_has_a_bar_over_all_arms() -> None:
    last = show(live=True).split("all arms")[-1]
    assert "50/60" in last
    assert "arm 5 of 6" in last
    assert "random, seed 1" in last
    assert "10/10" in last


def test_an_event_that_waits_is_seen() -> None:
    stream = io.StringIO()
    place = {"step": 7, "progress": 0.7, "sparsity": 0.5, "target_sparsity": 0.625}
    with ProgressView(Console(file=stream, width=140, markup=False)) as view:
        view({"kind": "wait", **place, "put_off": 12})
    assert stream.getvalue() == (
        "  step 7  sparsity 50.0 % of 62.5 % due: 12 weights wait, since more and more are shed\n"
    )
