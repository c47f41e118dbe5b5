"""What commands that train share: the packages they need, and how they stop."""

import importlib
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import click


def need_training_packages() -> None:
    """Refuse to begin without what training and validation import.

    Raises:
        MissingDependencyError: A package is missing.
    """
    from importlib.util import find_spec

    from onnxprune.errors import MissingDependencyError

    for package in ("torch", "accelerate", "safetensors"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingDependencyError(package, "train", "pruning") from error
    if find_spec("onnxruntime") is None:
        raise MissingDependencyError("onnxruntime", "cpu", "validation")


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second interrupts at once."""
    event = threading.Event()

    def handle(number: int, frame: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()
        click.echo("stopping after this step; once more stops at once", err=True)

    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
