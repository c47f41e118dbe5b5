"""Render labelled document pages in four orientations.

    python examples/orientation/render_pages.py --out demo/pages --train 3000 --eval 1200

writes `train/{0,90,180,270}/*.jpg` and `eval/{0,90,180,270}/*.jpg`. The pages depend on the seed
and on nothing else; asked for the same pages again, it leaves them as they are.
"""

import argparse
import json
import multiprocessing
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from pages import CLASSES, FontsMissingError, Split, render
from pages.fonts import font_folder

MANIFEST = "pages.json"
CHUNK = 50


class OutputFolderError(Exception):
    """The folder cannot take the pages; the message says why."""


@dataclass(frozen=True)
class Request:
    """What is to be rendered; kept in the manifest beside the pages.

    Attributes:
        seed: Seed of all pages.
        train: Number of training pages.
        eval: Number of evaluation pages.
        edition: Raised whenever the pages of a seed change.
    """

    seed: int
    train: int
    eval: int
    edition: int = 1


@dataclass(frozen=True)
class Chunk:
    """A range of pages for one worker; it knows all that the worker needs."""

    out: Path
    seed: int
    split: Split
    first: int
    stop: int


def render_chunk(chunk: Chunk) -> int:
    """Render and write the pages of one chunk and return their number."""
    for index in range(chunk.first, chunk.stop):
        content, label = render(chunk.seed, chunk.split, index)
        (chunk.out / chunk.split / label / f"{index:06d}.jpg").write_bytes(content)
    return chunk.stop - chunk.first


def split_work(out: Path, request: Request) -> Iterator[Chunk]:
    """Cut both splits into chunks."""
    counts: dict[Split, int] = {"train": request.train, "eval": request.eval}
    for split, count in counts.items():
        for first in range(0, count, CHUNK):
            yield Chunk(out, request.seed, split, first, min(first + CHUNK, count))


def prepare_folder(out: Path, request: Request) -> bool:
    """Make empty class folders, unless the very same pages are there already.

    Returns:
        Whether there is anything to render.

    Raises:
        OutputFolderError: `out` holds files that this script did not write.
    """
    manifest = out / MANIFEST
    if manifest.is_file():
        if manifest.read_text() == manifest_text(request, finished=True):
            return False
    elif out.exists() and any(out.iterdir()):
        raise OutputFolderError(f"{out} is not empty and holds no pages of this script")
    out.mkdir(parents=True, exist_ok=True)
    manifest.write_text(manifest_text(request, finished=False))
    for split in ("train", "eval"):
        if (out / split).exists():
            shutil.rmtree(out / split)
        for label in CLASSES:
            (out / split / label).mkdir(parents=True)
    return True


def manifest_text(request: Request, *, finished: bool) -> str:
    """What the manifest says about pages that are finished or only begun."""
    return json.dumps(asdict(request) | {"finished": finished}, indent=2) + "\n"


def render_all(out: Path, request: Request, jobs: int) -> None:
    """Render all pages with `jobs` processes."""
    total, done = request.train + request.eval, 0
    # Spawned workers behave alike on Linux, macOS and Windows.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        for count in pool.map(render_chunk, split_work(out, request)):
            done += count
            if sys.stderr.isatty():
                print(f"\rrendered {done} of {total} pages", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)


def positive(text: str) -> int:
    """A whole number above zero."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not above zero")
    return number


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Render labelled document pages.")
    parser.add_argument("--out", type=Path, required=True, help="folder for train/ and eval/")
    parser.add_argument("--train", type=positive, default=3000, help="number of training pages")
    parser.add_argument("--eval", type=positive, default=1200, help="number of evaluation pages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=positive, default=2, help="number of processes")
    return parser.parse_args()


def main() -> int:
    """Run the command line."""
    options = parse_options()
    request = Request(options.seed, options.train, options.eval)
    try:
        font_folder()
        if prepare_folder(options.out, request):
            render_all(options.out, request, options.jobs)
            (options.out / MANIFEST).write_text(manifest_text(request, finished=True))
    except (FontsMissingError, OutputFolderError, OSError) as error:
        print(f"render_pages: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("render_pages: interrupted; run it again to start over", file=sys.stderr)
        return 130
    print(f"{options.out}: {request.train} training and {request.eval} evaluation pages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
