"""The demo in a real browser: headless Chromium, by mouse and by keyboard, wide and narrow; and ten sessions at once.

`make test-browser` runs it, and writes the documentation's pictures where DEMO_PICTURES names a folder; DEMO_MODELS
names a quickstart to show, else tiny random models stand in for one.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from dual_distill.demo import Demonstration, generated_scenes, launch

pytestmark = pytest.mark.browser
pytest.importorskip("gradio", reason="needs gradio: pip install 'dual-distill[demo]'")
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")

playwright.expect.set_options(timeout=120_000)
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
NARROW, WIDE = 390, 1440
QUESTION = "how many blue shapes are there?"
WORDS = ["how", "many", "blue", "shapes", "are", "there", "?"]
SECONDS = 1000


@pytest.fixture(scope="module")
def page_url(student, teacher):
    """A page with a student beside its teacher, served by this process."""
    models = os.environ.get("DEMO_MODELS")
    if models:
        student, teacher = f"{models}/distilled", f"{models}/teacher"
    served = launch(Demonstration(student, teacher, generated_scenes(24)), port=None)
    yield served.local_url
    served.close()


@pytest.fixture(scope="module")
def chromium():
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium, or CHROMIUM=/path/to/it")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, page_url):
    """Opens pages; none may say anything in its console, nor ask another machine."""
    heard, contexts = [], []

    def open_page(width=WIDE):
        view = {"viewport": {"width": width, "height": 1000}, "reduced_motion": "reduce"}
        contexts.append(chromium.new_context(**view))
        page = contexts[-1].new_page()
        page.set_default_timeout(120 * SECONDS)
        page.on("console", lambda said: heard.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("request", lambda sent: None if is_local(sent.url) else heard.append(f"asked for {sent.url}"))
        page.goto(page_url, wait_until="commit")
        playwright.expect(page.locator("#words label").first).to_be_visible()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert heard == []


def is_local(url):
    return url.startswith(("http://127.0.0.1:", "data:", "blob:", "ws://127.0.0.1:"))


def words_of(page):
    return [label.inner_text().strip() for label in page.locator("#words label").all()]


def maps_of(page):
    return [image.get_attribute("src") for image in page.locator("#maps img").all()]


def ask(page, question=QUESTION):
    page.get_by_label("Question or sentence").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()


def wait_for_words(page, words=WORDS):
    playwright.expect(page.locator("#words label")).to_have_text(words)


def expect_notice(page, sentence):
    playwright.expect(page.get_by_role("alert")).to_contain_text(sentence)
    body = page.locator("body").inner_text()
    assert "Traceback" not in body
    assert "site-packages" not in body


def keep_picture(page, name):
    """A picture for the documentation, where one is wanted."""
    if folder := os.environ.get("DEMO_PICTURES"):
        page.wait_for_timeout(SECONDS)
        page.screenshot(path=Path(folder, f"{name}.png"), full_page=True)


def test_the_page_opens_with_an_answer_and_maps_of_both_models(visit):
    page = visit()
    playwright.expect(page.locator("#maps img")).to_have_count(2)
    playwright.expect(page.locator("[data-testid=label-output-value]")).to_have_count(2)
    playwright.expect(page.locator("#times")).to_contain_text("image stored")
    assert len(words_of(page)) > 2


def test_a_question_is_answered_and_a_clicked_word_changes_the_maps(visit):
    page = visit()
    ask(page)
    wait_for_words(page)
    before = maps_of(page)
    # Which word is shown first follows from the weights; another one is clicked.
    word = "blue" if "attention of many" in page.locator("#share").inner_text() else "many"
    page.locator("#words label", has_text=word).click()
    playwright.expect(page.locator("#share")).to_contain_text(f"attention of {word}")
    page.wait_for_function("old => document.querySelectorAll('#maps img')[0].src != old", arg=before[0])
    assert all(one != other for one, other in zip(before, maps_of(page), strict=True))


def test_an_image_of_the_gallery_is_taken_and_asked(visit):
    page = visit()
    shown = page.get_by_label("Question or sentence").input_value()
    page.locator("#offered button").nth(5).click()
    page.wait_for_function("old => document.querySelector('textarea, input[type=text]').value != old", arg=shown)
    playwright.expect(page.locator("#maps img")).to_have_count(2)


def test_an_uploaded_image_is_asked(visit, tmp_path):
    page = visit()
    Image.new("RGB", (300, 200), "blue").save(tmp_path / "blue.png")
    before = maps_of(page)
    clear_image(page)
    page.locator("#picture input[type=file]").set_input_files(tmp_path / "blue.png")
    playwright.expect(page.locator("#picture img")).to_be_visible()
    ask(page)
    wait_for_words(page)
    page.wait_for_function("old => document.querySelectorAll('#maps img')[0].src != old", arg=before[0])


def clear_image(page):
    page.get_by_role("button", name="Remove Image").click()
    playwright.expect(page.locator("#picture img")).to_have_count(0)


def test_a_search_finds_images_and_says_how_probable_each_is(visit):
    page = visit()
    page.get_by_role("tab", name="Search").click()
    page.get_by_label("Question to all images").fill("is there a red circle?")
    page.get_by_role("button", name="Search", exact=True).click()
    playwright.expect(page.locator("#found img")).to_have_count(12)
    playwright.expect(page.locator("#found").get_by_text("%").first).to_be_visible()
    keep_picture(page, "demo_search")


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"\x89PNG\r\n\x1a\nno image", "This image cannot be used: the bytes are not an image"),
        (b"P6 60000 50000 255\n", "This image cannot be used: its header declares"),
    ],
    ids=["broken", "huge"],
)
def test_an_image_that_cannot_be_used_is_said_in_a_sentence_that_goes_again(visit, tmp_path, content, sentence):
    page = visit()
    (tmp_path / "photo.png").write_bytes(content)
    clear_image(page)
    page.locator("#picture input[type=file]").set_input_files(tmp_path / "photo.png")
    expect_notice(page, sentence)
    ask(page)
    expect_notice(page, "There is no image yet")
    page.locator("#offered button").first.click()
    playwright.expect(page.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize(
    "question, sentence", [("", "There is no question yet; write one."), ("x" * 1200, "1,200 characters")]
)
def test_a_question_that_cannot_be_asked_is_said_in_a_sentence(visit, question, sentence):
    page = visit()
    ask(page, question)
    expect_notice(page, sentence)


def test_a_search_without_words_is_said_in_a_sentence(visit):
    page = visit()
    page.get_by_role("tab", name="Search").click()
    page.get_by_role("button", name="Search", exact=True).click()
    expect_notice(page, "There is no text yet; write one.")


def test_everything_can_be_done_by_keyboard_alone(visit):
    page = visit()

    def tab_to(reached, most=60):
        for _ in range(most):
            page.keyboard.press("Tab")
            if page.evaluate(f"() => {{ const e = document.activeElement; return {reached}; }}"):
                return
        raise AssertionError(f"{most} times Tab did not reach {reached}")

    tab_to("e.tagName == 'TEXTAREA'")
    page.keyboard.press("Control+a")
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    wait_for_words(page)

    # An image, a word, the other tab.
    tab_to("e.closest('#offered') && e.tagName == 'BUTTON'")
    tab_to("e.closest('#words') && e.type == 'radio'")
    before = maps_of(page)
    tab_to("e.closest('#words') && e.type == 'radio' && !e.checked", most=2)
    page.keyboard.press("Space")
    page.wait_for_function("old => document.querySelectorAll('#maps img')[0].src != old", arg=before[0])
    page.get_by_role("tab", name="Ask").focus()
    tab_to("e.getAttribute('role') == 'tab' && e.textContent.includes('Search')", most=3)
    page.keyboard.press("Enter")
    playwright.expect(page.get_by_label("Question to all images")).to_be_visible()
    tab_to("e.tagName == 'TEXTAREA' || e.type == 'text'", most=5)
    page.keyboard.type("is there a red circle?")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#found img")).to_have_count(12)


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_nothing_is_wider_than_the_window(visit, width):
    page = visit(width)
    ask(page, "what colour is the thing left of the red square?")
    playwright.expect(page.locator("#words label")).to_have_count(11)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for element in page.locator("#maps img, #words, #times table, #offered, #picture img").all():
        box = element.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    keep_picture(page, f"demo_{width}")


def test_ten_sessions_at_once_each_get_the_words_of_their_own_question(page_url):
    """By the protocol of the page: ten browsers would measure how many of them a machine can draw."""
    client = pytest.importorskip("gradio_client")
    start = threading.Barrier(10)

    def use(number):
        session = client.Client(page_url, verbose=False)
        start.wait()
        session.predict(api_name="/open")
        results = session.predict(f"is there a{number} shape?", api_name="/ask")
        [words] = [one for one in results if isinstance(one, dict) and "choices" in one]
        return results[0], [word for word, _ in words["choices"]]

    with ThreadPoolExecutor(10) as pool:
        told = list(pool.map(use, range(10)))
    assert told == [("", ["is", "there", f"a{number}", "shape", "?"]) for number in range(10)]


def test_a_port_that_is_taken_is_said(page_url, student):
    port = int(page_url.rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(OSError, match=f"cannot listen at port {port} of"):
        launch(Demonstration(student), port=port)


def test_the_command_serves_a_checkpoint_and_ends_with_ctrl_c(chromium, student, tmp_path):
    command = [sys.executable, "-m", "dual_distill", "demo", student, "--device", "cpu"]
    # Heard where the tests are a background job too.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "preexec_fn": heard}
    with subprocess.Popen(command, cwd=tmp_path, **pipes) as started:
        url = None
        for line in started.stderr:
            if line.startswith("open "):
                url = line.split()[1]
                break
        assert url, "the command ended without a page"
        page = chromium.new_page()
        page.goto(url)
        playwright.expect(page.locator("#maps img")).to_have_count(1, timeout=60 * SECONDS)
        started.send_signal(signal.SIGINT)
        out, _ = started.communicate(timeout=60)
        assert (started.returncode, "shown at" in out) == (0, True)
