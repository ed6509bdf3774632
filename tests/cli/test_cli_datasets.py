"""Texts from files and from a stand-in of the hub; what is refused, and why."""

import json
import sys

import pytest

from param_features.cli.datasets import DataSource, read_texts
from param_features.errors import MissingExtraError, SourceError
from param_features.files.hub.places import local_path

STORIES = "One\ntwo\n\nThree\n \n\nfour five\n"


def read(path, **changes):
    return list(read_texts(DataSource(str(path), **changes)))


@pytest.mark.parametrize(
    ("sample_by", "expected"),
    [
        ("line", ["One", "two", "Three", "four five"]),
        ("paragraph", ["One\ntwo", "Three", "four five\n"]),
        ("document", [STORIES]),
    ],
)
@pytest.mark.parametrize("name", ["stories.txt", "stories.text", "stories.md", "stories"])
def test_a_text_file_is_read_by_line_paragraph_or_whole(tmp_path, name, sample_by, expected):
    (tmp_path / name).write_text(STORIES)
    assert read(tmp_path / name, sample_by=sample_by) == expected


def test_json_rows_are_strings_or_have_a_field(tmp_path):
    rows = ["a", {"text": "b", "body": "c"}, "  ", {"text": ""}]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    (tmp_path / "x.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    assert read(tmp_path / "x.json") == read(tmp_path / "x.jsonl") == ["a", "b"]
    (tmp_path / "y.jsonl").write_text(json.dumps(rows[1]))
    assert read(tmp_path / "y.jsonl", text_field="body") == ["c"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'"a"\n{"body": "c", "id": 1}', "line 2 of .* no field 'text'; its fields: 'body', 'id'.*--text-field"),
        ("x.jsonl", b'"a"\n{', "line 2 of .* is not JSON"),
        ("x.json", b'{"text": "a"}', "holds a JSON dict, not a list"),
        ("x.json", b'["a", 3]', "entry 1 of .* holds 3 where a text"),
        ("x.json", b'[{"text": ["a"]}]', r"entry 0 of .* holds \['a'\]"),
        ("x.json", b"", "is not JSON"),
        ("x.txt", b"\xff\xfe", "not UTF-8"),
        ("x.json", b"\xff\xfe", "not UTF-8"),
        ("x.csv", b"a,b", r"a file of kind '.csv'.*\.jsonl or \.json"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        read(tmp_path / name)


def test_a_folder_is_no_data_set(tmp_path):
    with pytest.raises(SourceError, match="is a folder"):
        read(tmp_path)


def test_what_exists_here_is_a_path_and_never_a_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("gpt2", "owner/name"):
        assert local_path(name) is None
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("here")
        assert local_path(name).read_text() == "here"


def test_the_home_folder_is_written_as_in_a_shell(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.txt").write_text("here")
    assert read("~/x.txt") == ["here"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./gone", "hub names are"),
        ("/gone/model", "hub names are"),
        ("~/gone", "hub names are"),
        ("a/b/c", "hub names are"),
        ("two words", "hub names are"),
        ("", "hub names are"),
        ("gone.txt", r"it ends like a file \(.txt\)"),
        ("owner/gone.jsonl", r"it ends like a file \(.jsonl\)"),
        ("runs/gone", "'runs' is a folder here"),
    ],
)
def test_what_reads_like_a_path_is_not_looked_up_on_the_hub(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    if not name:
        assert local_path(name) is not None  # the folder itself
        return
    with pytest.raises(SourceError, match=f"{name}.*not looked up on the Hugging Face hub since {message}"):
        local_path(name)


@pytest.fixture
def hub(monkeypatch):
    """A stand-in of the hub, which remembers what was asked for and how many rows were taken."""
    library = pytest.importorskip("datasets")
    seen = {"rows": 0}

    def rows():
        for number in range(100):
            seen["rows"] += 1
            yield {"text": f"text {number}", "label": number}

    def load_dataset(*names, **settings):
        seen["call"] = (names, settings)
        if names[0] == "owner/gone":
            raise library.exceptions.DatasetNotFoundError("Dataset 'owner/gone' doesn't exist\non the Hub.")
        return rows()

    monkeypatch.setattr(library, "load_dataset", load_dataset)
    return seen


def test_a_hub_data_set_is_streamed_as_far_as_it_is_read(hub):
    texts = read_texts(DataSource("owner/name", split="validation", subset="small"))
    assert [next(texts), next(texts)] == ["text 0", "text 1"]
    assert hub["rows"] == 2
    assert hub["call"] == (("owner/name", "small"), {"split": "validation", "streaming": True})


def test_what_the_hub_does_not_have_is_named(hub):
    with pytest.raises(SourceError, match="(?s)No texts from the hub's data set 'owner/gone'.*--subset and --split"):
        read("owner/gone")
    with pytest.raises(SourceError, match="a row of the hub's data set 'owner/name' has no field 'body'; .*'text', 'label'"):
        read("owner/name", text_field="body")
    with pytest.raises(SourceError, match="holds 0 where a text is expected"):
        read("owner/name", text_field="label")


def test_the_hub_needs_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r'pip install "param_features\[hf\]", or give a file'):
        read("owner/name")
