"""`condu predict`: what it is asked about, what it writes, and that it goes on where it was cut."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from cluster.commands.predict import predict
from cluster.predict_inputs import images_of
from cluster.predict_output import COLUMNS, open_output
from fusion.errors import ConduError, ConfigError, DataError
from fusion.store import Store, open_store
from fusion.store.s3 import S3Store
from tests.s3_server import S3Server
from tests.serving.helpers import pictures, png, publish_tasks
from tests.serving.plain import PlainService
from tests.serving.test_client import listening

ROOT = Path(__file__).resolve().parents[2]
BODIES = [png(image) for image in pictures("red", "blue", "green", "red", "blue", "green")]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = open_store(str(tmp_path_factory.mktemp("store")))
    publish_tasks(store)
    return store


@pytest.fixture(scope="module")
def url(store: Store) -> Iterator[str]:
    with listening(PlainService(store)) as found:
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, body in enumerate(BODIES):
        place = tmp_path / "photos" / ("deep" if i % 2 else "") / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(body)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        return list(csv.DictReader(path.read_text().splitlines()))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def test_folders_patterns_and_tables_name_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    inside = sorted(str(path) for path in Path("photos").rglob("*.png"))
    assert [image.name for image in images_of(["photos"])] == inside
    assert [image.name for image in images_of(["photos/**/*.png"])] == inside
    (folder / "list.csv").write_text("id,path\n1,0.png\n2,deep/1.png\n")
    pq.write_table(pa.table({"where": ["2.png"], "id": [1]}), folder / "list.parquet")
    listed = images_of(["photos/list.csv"]) + images_of(["photos/list.parquet"], "where")
    assert [image.name for image in listed] == ["0.png", "deep/1.png", "2.png"]
    assert [image.read() for image in listed] == BODIES[:3]


@pytest.mark.parametrize(
    ("argument", "content", "says"),
    [
        ("none*.png", None, "no file matches"),
        ("empty", None, "holds no images"),
        ("list.csv", "id,label\n1,2\n", "name it with --column"),
        ("list.csv", "path\n", "lists no images"),
        ("list.csv", 'path,id\n"",1\n', "row 1 has no path"),
        ("list.parquet", "no parquet", "can't be read"),
        ("none.csv", None, "no such file"),
    ],
)
def test_inputs_without_images_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, content: str | None, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    if content is not None:
        (tmp_path / argument).write_text(content)
    with pytest.raises(DataError, match=says):
        images_of([argument])


@pytest.mark.s3
def test_a_prefix_of_a_bucket_and_a_table_in_it(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    root = f"s3://{s3_server.bucket}/predict-inputs"
    bucket = S3Store(root)
    for i, body in enumerate(BODIES[:3]):
        bucket.put_if_absent(f"a/{i}.png", body)
    bucket.put_if_absent("a/readme.txt", b"no image")
    bucket.put_if_absent("list.csv", b"path\na/1.png\n")
    assert [image.name for image in images_of([f"{root}/a/"])] == [f"{root}/a/{i}.png" for i in range(3)]
    listed = images_of([f"{root}/list.csv", f"{root}/a/2.png"])
    assert [image.read() for image in listed] == BODIES[1:3]
    with pytest.raises(DataError, match="holds no images"):
        images_of([f"{root}/none/"])


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_the_service_and_the_store_write_the_same_file(
    url: str, store: Store, folder: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    served, local = folder.parent / f"served{suffix}", folder.parent / f"local{suffix}"
    predict([str(folder)], server=url, output=served, batch_size=2, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"output": str(served), "answered": 6, "skipped": 0, "failed": []}
    predict([str(folder)], store=store.url, output=local)
    rows, others = rows_of(served), rows_of(local)
    assert [row["image"] for row in rows] == [image.name for image in images_of([str(folder)])]
    assert [(r["image"], r["label"], r["task"], int(r["version"])) for r in rows] == [
        (r["image"], r["label"], r["task"], int(r["version"])) for r in others
    ]
    assert [float(r["probability"]) for r in rows] == pytest.approx([float(r["probability"]) for r in others], abs=1e-4)
    assert tuple(rows[0])[: len(COLUMNS)] == COLUMNS


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_file_that_was_cut_is_repaired_and_continued(url: str, folder: Path, suffix: str, cut: int) -> None:
    out = folder.parent / f"out{suffix}"
    predict([str(folder)], server=url, output=out, task="colours")
    whole = out.read_bytes()
    out.write_bytes(whole[:-cut])
    predict([str(folder)], server=url, output=out, task="colours")
    assert [(row["image"], row["label"]) for row in rows_of(out)] == [
        (row["image"], row["label"]) for row in _rows_in(whole, suffix)
    ]
    kept = out.read_bytes()
    predict([str(folder)], server=url, output=out, task="colours")
    assert out.read_bytes() == kept


def _rows_in(content: bytes, suffix: str) -> list[dict[str, Any]]:
    text = content.decode().splitlines()
    return list(csv.DictReader(text)) if suffix == ".csv" else [json.loads(line) for line in text]


def test_a_name_with_quotes_and_newlines_survives_a_cut(url: str, tmp_path: Path) -> None:
    names = [tmp_path / 'a "b",\nc.png', tmp_path / "d\ne.png"]
    for name in names:
        name.write_bytes(BODIES[0])
    out = tmp_path / "out.csv"
    predict([str(name) for name in names], server=url, output=out)
    whole = out.read_bytes()
    out.write_bytes(whole[: whole.index(b"e.png")])  # after a newline that is in a name
    predict([str(name) for name in names], server=url, output=out)
    assert [row[0] for row in csv.reader(out.open(newline=""))][1:] == [str(name) for name in names]


def test_parquet_is_continued_from_its_partial_file(url: str, folder: Path) -> None:
    out, partial = folder.parent / "out.parquet", folder.parent / "out.parquet.partial"
    first = sorted(folder.glob("*.png"))
    predict([str(path) for path in first], server=url, output=out)
    assert not partial.exists()
    (jsonl := folder.parent / "more.jsonl").unlink(missing_ok=True)
    predict([str(folder / "deep" / "1.png")], server=url, output=jsonl)
    partial.write_bytes(jsonl.read_bytes() + b'{"image": "cu')  # as a killed run leaves it
    predict([str(folder)], server=url, output=out)
    assert sorted(row["image"] for row in rows_of(out)) == sorted(image.name for image in images_of([str(folder)]))
    assert len(rows_of(out)) == 6
    assert not partial.exists()


def test_a_bad_image_is_named_and_the_rest_is_answered_and_tried_again(
    url: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.png").write_text("no image")
    out = folder.parent / "out.jsonl"
    with pytest.raises(typer.Exit) as ended:
        predict([str(folder), str(folder / "none.png")], server=url, output=out)
    assert ended.value.exit_code == 3
    told = " ".join(capsys.readouterr().err.split())
    assert f"{folder}/bad.png is not an image" in told
    assert f"{folder}/none.png: no such file" in told
    assert len(rows_of(out)) == 6
    (folder / "bad.png").write_bytes(BODIES[0])
    predict([str(folder)], server=url, output=out)
    assert len(rows_of(out)) == 7


@pytest.mark.parametrize("where", ["server", "store"])
def test_without_an_output_too(
    url: str, store: Store, folder: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    at: Any = {"server": url} if where == "server" else {"store": store.url}
    (folder / "bad.png").write_text("no image")
    with pytest.raises(typer.Exit) as ended:
        predict([str(folder)], as_json=True, **at)
    assert ended.value.exit_code == 3
    told = json.loads(capsys.readouterr().out)
    assert len(told["predictions"]) == 6
    assert [failed["image"] for failed in told["failed"]] == [f"{folder}/bad.png"]
    predict([str(folder / "0.png")], **at)
    assert "label space seen" in capsys.readouterr().out
    with pytest.raises(ConduError, match="is not an image"):
        predict([str(folder / "bad.png")], **at)


def test_files_that_are_something_else_are_not_touched(url: str, folder: Path) -> None:
    for name, content in (
        ("a.csv", "my,own,data\n1,2,3\n"), ("b.csv", "no newline"), ("c.jsonl", '{"mine": 1}\n'), ("d.jsonl", "text"),
        ("e.parquet", "text"),
    ):  # fmt: skip
        path = folder.parent / name
        path.write_text(content)
        with pytest.raises(DataError, match="cannot be continued"):
            predict([str(folder)], server=url, output=path)
        assert path.read_text() == content
    with pytest.raises(ConfigError, match=r"\.csv, \.jsonl, \.parquet"):
        predict([str(folder)], server=url, output=folder / "out.txt")


def test_one_file_answers_one_question_and_has_one_writer(url: str, folder: Path) -> None:
    out = folder.parent / "out.csv"
    predict([str(folder)], server=url, output=out, task="colours")
    for other in ({"task": "shapes"}, {"labels": "a,b"}, {}):
        with pytest.raises(ConfigError, match="choose another file"):
            predict([str(folder)], server=url, output=out, **other)  # type: ignore[arg-type]
    with open_output(out), pytest.raises(ConfigError, match="being written by another"), open_output(out):
        pass


@pytest.mark.processes
def test_asking_a_service_loads_neither_torch_nor_ray_nor_numpy(url: str, folder: Path) -> None:
    code = (
        "import sys; from cluster.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "predict", str(folder / "0.png"), "--server", url, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["predictions"][0]["label"]
    assert not set(done.stderr.split()) & {"torch", "ray", "numpy", "open_clip", "fastapi", "boto3", "pyarrow", "PIL"}
