"""Pictures from a real server on this machine, and what is refused of them."""

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from dual_distill.data import ImageError
from dual_distill.inference import load_image


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
