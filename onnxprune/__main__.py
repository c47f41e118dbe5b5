"""`python -m onnxprune` is the same as `onnxprune`."""

from onnxprune.cli import main

main()
