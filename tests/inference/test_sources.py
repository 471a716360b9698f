"""What is to be encoded: ids and values of folders, Parquet, data sets, mappings and texts; images from a server."""

import io
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, Features, Value
from datasets import Image as ImageColumn
from PIL import Image

from dual_distill.data import ImageError, image_bytes
from dual_distill.inference import load_image, open_images, read_texts
from dual_distill.inference.sources import distinct_texts


def png(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), colour).save(path)
    return path


def test_a_folder_with_all_below_it_in_the_order_of_paths(tmp_path) -> None:
    for name in ("b.png", "a/z.JPG", "a/b/c.webp", "d.avif", ".hidden.png", ".cache/d.png"):
        png(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    source = open_images(str(tmp_path))
    assert source.ids == ["a/b/c.webp", "a/z.JPG", "b.png", "d.avif"]
    assert source.value("a/z.JPG") == str(tmp_path / "a" / "z.JPG")


def test_linked_folders_are_searched_and_a_link_back_is_not_followed(tmp_path) -> None:
    png(tmp_path / "elsewhere" / "a.png")
    png(tmp_path / "photos" / "b.png")
    png(tmp_path / "photos" / "2023" / "c.png")
    links = (("photos/2024", "elsewhere"), ("elsewhere/back", "photos"), ("photos/self", "photos"))
    # One to a folder that is searched anyway, which would give its images twice; and two that link to each other.
    links += (("photos/latest", "photos/2023"), ("elsewhere/other", "more"), ("more/again", "elsewhere"))
    (tmp_path / "more").mkdir()
    for link, to in links:
        (tmp_path / link).symlink_to(tmp_path / to)
    assert open_images(tmp_path / "photos").ids == ["2023/c.png", "2024/a.png", "b.png"]


def test_names_of_people_are_readable_and_lines_are_not(tmp_path) -> None:
    names = ["Screenshot 9.41\u202fAM.png", "\u0928\u094d\u200d.png", "new.AVIF", "no\u00a0break.jpg"]
    for name in names:
        png(tmp_path / name)
    assert open_images(tmp_path).ids == sorted(names)
    for name in ("two\nlines.png", "line\u2028end.png"):
        png(tmp_path / name)
        with pytest.raises(ValueError, match="holds a file with an unreadable name"):
            open_images(tmp_path)
        (tmp_path / name).unlink()


@pytest.fixture
def rows(tmp_path) -> Dataset:
    files = [png(tmp_path / f"{colour}.png", colour) for colour in ("red", "blue")]
    columns = {"image": [{"bytes": file.read_bytes(), "path": None} for file in files], "sku": [17, 4]}
    return Dataset.from_dict(columns, features=Features({"image": ImageColumn(), "sku": Value("int64")}))


def test_a_parquet_file_a_saved_data_set_and_one_in_memory(rows, tmp_path) -> None:
    rows.to_parquet(tmp_path / "shop.parquet")
    rows.save_to_disk(tmp_path / "saved")
    for images in (tmp_path / "shop.parquet", tmp_path / "saved", rows):
        source = open_images(images, id_column="sku")
        assert source.ids == ["17", "4"]
        assert source.value("4")["bytes"] == (tmp_path / "blue.png").read_bytes()
        assert open_images(images).ids == ["0", "1"]


def test_one_split_of_several(rows, tmp_path) -> None:
    both = DatasetDict({"train": rows, "test": rows.select([1])})
    both.save_to_disk(tmp_path / "both")
    assert open_images(str(tmp_path / "both"), id_column="sku", split="test").ids == ["4"]
    with pytest.raises(ValueError, match=r"There are the splits train, test in .*both', but none is named"):
        open_images(str(tmp_path / "both"))
    with pytest.raises(ValueError, match="but dev is named"):
        open_images(both, split="dev")
    assert open_images(DatasetDict({"train": rows})).ids == ["0", "1"]


def test_what_is_no_source(rows, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty' holds no image \(\.png"):
        open_images(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"There is no file .*none\.parquet"):
        open_images(str(tmp_path / "none.parquet"))
    with pytest.raises(FileNotFoundError, match="There is no folder 'no/such/folder'"):
        open_images("no/such/folder")
    for misspelt in ("photoz", "photoz/"):
        with pytest.raises(FileNotFoundError, match=f"There is no folder '{misspelt}'"):
            open_images(misspelt)
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(ValueError, match=r"photo\.jpg' is one file, and no Parquet file; give the folder"):
        open_images(str(tmp_path / "photo.jpg"))
    with pytest.raises(ValueError, match="'nobody/nothing' is not a folder or Parquet file here, nor a dataset"):
        open_images("nobody/nothing")
    with pytest.raises(ValueError, match="no column 'photo', only image, sku"):
        open_images(rows, image_column="photo")
    twice = Dataset.from_dict({"image": ["a", "b", "c"], "sku": ["x", "y", "x"]})
    with pytest.raises(ValueError, match="1 ids occur more than once in the column 'sku', such as 'x'"):
        open_images(twice, id_column="sku")
    with pytest.raises(ValueError, match="There are no images"):
        open_images({})
    with pytest.raises(ValueError, match="The id 7 is a int"):
        open_images({7: "a.png"})


def test_columns_and_splits_of_what_has_none_are_refused(rows, tmp_path) -> None:
    folder, mapping = png(tmp_path / "photos" / "a.png").parent, {"a": "a.png"}
    for images, named, what in (
        (folder, {"image_column": "zzz"}, "image_column is 'zzz', but a folder of images has neither columns nor spl"),
        (folder, {"id_column": "sku"}, "id_column is 'sku', but a folder of images"),
        (mapping, {"split": "foo"}, "split is 'foo', but a mapping of images has neither columns nor splits; leave it"),
        (open_images(mapping), {"id_column": "sku"}, "id_column is 'sku', but images by their ids"),
        (rows, {"split": "foo"}, "split is 'foo', but the dataset has no splits; leave it out"),
    ):
        with pytest.raises(ValueError, match=what):
            open_images(images, **named)
    # The default, written out.
    assert open_images(folder, "image").ids == ["a.png"]
    assert open_images(open_images(mapping, "image"), "image").ids == ["a"]


def test_texts_once_each(tmp_path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\ufeffwhat is it?\n\n is it red? \r\nwhat is it?\n", encoding="utf-8")
    assert read_texts(file) == ["what is it?", "is it red?", "what is it?"]
    assert distinct_texts(read_texts(file)).ids == ["what is it?", "is it red?"]
    with pytest.raises(ValueError, match="A text is ''"):
        distinct_texts(["a", ""])
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_texts(file)


def test_the_hash_is_that_of_the_content(tmp_path) -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # of no byte at all
    assert image_bytes(b"", "x")[1] == empty
    file = png(tmp_path / "a.png")
    value, sha256 = image_bytes(str(file), "a")
    assert value == {"bytes": file.read_bytes(), "path": str(file)}
    assert sha256 == image_bytes(file.read_bytes(), "b")[1]
    red, blue = (Image.new("RGB", (4, 3), colour) for colour in ("red", "blue"))
    assert image_bytes(red, "a")[1] == image_bytes(red.copy(), "b")[1] != image_bytes(blue, "a")[1]
    with pytest.raises(ImageError, match=r"row a \(image 'nowhere.png'\): the file cannot be read"):
        image_bytes("nowhere.png", "a")


# One image, from a real server on this machine


def encoded(kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (10, 20, 30)).save(buffer, kind)
    return buffer.getvalue()


class Pictures(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved.png":
            self.send_response(302)
            self.send_header("Location", "/picture.png")
            self.end_headers()
        elif self.path in ("/picture.png", "/page.html"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(encoded() if self.path == "/picture.png" else b"<html>no picture</html>")
        else:
            self.send_error(404)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("name", ["picture.png", "moved.png"])
def test_a_url_is_fetched_and_redirects_are_followed(address: str, name: str) -> None:
    image = load_image(f"{address}/{name}", name=0)
    assert (image.size, image.mode, image.getpixel((5, 3))) == ((6, 4), "RGB", (10, 20, 30))


def test_what_a_server_may_answer(address: str) -> None:
    with pytest.raises(ImageError, match=r"row 3 \(image 'http://127.*absent.png'\): the server answers 404"):
        load_image(f"{address}/absent.png", name=3)
    with pytest.raises(ImageError, match=r"page.html'\): the bytes are not an image of a known format"):
        load_image(f"{address}/page.html", name=0)
    with pytest.raises(ImageError, match="the server sends more than the 20 bytes that are allowed"):
        load_image(f"{address}/picture.png", name=0, max_bytes=20)


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(ImageError, match=r"row 0 \(image 'http://127.0.0.1:9/x.png'\): it cannot be downloaded"):
        load_image("http://127.0.0.1:9/x.png", name=0)


def test_a_path_that_looks_like_a_scheme_is_a_path() -> None:
    with pytest.raises(ImageError, match=r"\(image 'http_photo.png'\): the file cannot be read"):
        load_image("http_photo.png", name=0)


def test_an_address_is_named_without_its_credentials():
    with pytest.raises(
        ImageError, match=r"image 'http://127.0.0.1:9/a.png\?token=...&size=2'\): it cannot be"
    ) as caught:
        load_image("http://ada:s3cret@127.0.0.1:9/a.png?token=abc&size=2", name=0)
    assert not {"ada", "s3cret", "abc"} & set(re.split(r"\W+", str(caught.value)))
