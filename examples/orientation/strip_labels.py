"""Put the pages of class folders into one flat folder, under names that tell nothing.

    python examples/orientation/strip_labels.py --pages demo/pages/train --out demo/unlabelled

It stands for a user who has plenty of pages and no labels.
"""

import argparse
import shutil
from pathlib import Path


def main() -> None:
    """Copy every page once; a folder that is there already is made anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--out", type=Path, required=True, help="flat folder to make")
    arguments = parser.parse_args()
    pages = sorted(arguments.pages.rglob("*.jpg"), key=lambda page: (page.name, page))
    if not pages:
        raise SystemExit(f"{arguments.pages} holds no pages; render_pages.py makes them")
    shutil.rmtree(arguments.out, ignore_errors=True)
    arguments.out.mkdir(parents=True)
    for index, page in enumerate(pages):
        shutil.copyfile(page, arguments.out / f"{index:06d}.jpg")
    print(f"{arguments.out}: {len(pages)} pages without labels")


if __name__ == "__main__":
    main()
