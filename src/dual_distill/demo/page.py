"""The page itself, of gradio's own components: what they ask stands in `demonstration.py`.

Everything can be reached by the keyboard. A mistake is a sentence in a line of its own, which stays until the next
request; nothing is fetched from other machines.
"""

import functools
import html
import logging
import uuid
from collections.abc import Callable
from typing import Any

from PIL import Image

from dual_distill.inference import load_image

from .demonstration import Answered, Demonstration, looks, read_upload, sharpest

logger = logging.getLogger(__name__)

_OFFERED = 12
_THUMBNAIL = 160
_FOUND = 12
_MOST_ANSWERS_LISTED = 40
_ANY = "(the most probable answer of each image)"
_CSS = """
#notice p { margin: 0; padding: .7em 1em; border-left: .3em solid #b02a20; background: #fdecea; color: #5f1410; }
#maps img, #found img, #offered img, #picture img { image-rendering: pixelated; }
#offered .grid-wrap, #found .grid-wrap { min-height: 0; max-height: none; }
#offered .thumbnail-item { height: auto; aspect-ratio: 1; }
#offered .grid-container { grid-template-columns: repeat(6, minmax(0, 1fr)); }
@media (max-width: 640px) { #offered .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)); } }
"""


def gradio() -> Any:
    """Import gradio, or say how it is installed.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import gradio
    except ImportError as error:
        raise ImportError("The demo needs gradio, which is not installed: pip install 'dual-distill[demo]'.") from error
    return gradio


def launch(shown: Demonstration, host: str | None = None, port: int | None = None, note: str = "") -> Any:
    """Start the page's server and return at once.

    Args:
        shown: what the page asks.
        host: address to listen at; None: 127.0.0.1, which no other machine reaches, or GRADIO_SERVER_NAME.
        port: None: the first free one from 7860 on, or GRADIO_SERVER_PORT.
        note: a sentence above everything.

    Returns:
        The started `gradio.Blocks`: `local_url`, `block_thread()`, `close()`.

    Raises:
        ImportError: gradio is not installed.
        OSError: the port is taken, or nothing may listen there.
    """
    theme = gradio().themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    page = build_page(shown, note)
    # One request at a time: others wait in line, and models are not asked by two threads at once.
    page.queue(default_concurrency_limit=1)
    looks_like: dict[str, Any] = {"theme": theme, "css": _CSS, "footer_links": [], "ssr_mode": False}
    server: dict[str, Any] = {"server_name": host, "server_port": port, "max_file_size": "64mb", "share": False}
    try:
        page.launch(**server, **looks_like, quiet=True, prevent_thread_lock=True, inbrowser=False)
    except OSError as error:
        if port is None:
            raise
        wrong = f"cannot listen at port {port} of {host or '127.0.0.1'}, which may be taken"
        raise OSError(f"{wrong}; give another --port, or leave it out for the first free one.") from error
    return page


def build_page(shown: Demonstration, note: str = "") -> Any:
    """Lay the page out; a part is there where the checkpoint can do it."""
    gr = gradio()
    title = f"dual_distill: {', '.join(shown.models)}"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# Ask an image, and see where the words look\n{note}\n\n{_described(shown)}")
        notice = gr.HTML(elem_id="notice")
        with gr.Tab("Ask"):
            _ask_tab(gr, page, shown, notice)
        if shown.searches:
            with gr.Tab("Search"):
                _search_tab(gr, shown, notice)
    return page


def _described(shown: Demonstration) -> str:
    names = " · ".join(f"**{html.escape(name)}**" for name in shown.models)
    return f"{names}. Images stay on the machine that runs this page."


def _guarded(notice: Any, function: Callable[..., dict[Any, Any]]) -> Callable[..., dict[Any, Any]]:
    """A handler whose mistakes are a sentence in the page, and whose success takes the last one away."""

    @functools.wraps(function)
    def call(*values: Any) -> dict[Any, Any]:
        try:
            return {notice: "", **function(*values)}
        except (ValueError, OSError) as error:
            sentence = str(error)
        except Exception:
            logger.exception("The demo failed in a way that it does not know.")
            sentence = "Something went wrong that the demo does not know; the program's log has the details. Try again."
        return {notice: f'<p role="alert">{html.escape(sentence)}</p>'}

    return call


def _ask_tab(gr: Any, page: Any, shown: Demonstration, notice: Any) -> None:
    """Image and question on the left; answers, words and maps on the right."""
    image, asked = gr.State(), gr.State()
    offered = shown.images.ids[:_OFFERED] if shown.images else []
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            taken: dict[str, Any] = {"type": "filepath", "sources": ["upload", "clipboard"], "format": "png"}
            picture = gr.Image(label="Image", elem_id="picture", height=300, **taken)
            # The file as it is, so that nothing but our own decoder opens it.
            picture.preprocess = lambda payload: None if payload is None else payload.path
            question = gr.Textbox(label="Question or sentence", placeholder="what is in the image?", max_lines=3)
            button = gr.Button("Ask", variant="primary")
            if offered:
                gr.Markdown("Or choose an image:")
                layout: dict[str, Any] = {"columns": 6, "height": "auto", "allow_preview": False, "buttons": []}
                thumbnails = [_small(one) for one in shown.images_of(offered)]
                gallery = gr.Gallery(thumbnails, show_label=False, elem_id="offered", **layout)
        with gr.Column(scale=3, min_width=300):
            with gr.Row():
                answers = {name: gr.Label(label=name, min_width=240) for name in shown.models if shown.answers(name)}
            caption = gr.Textbox(label="Caption", visible=shown.writes_captions)
            words = gr.Radio([], label="Choose a word: where does it look?", elem_id="words", interactive=True)
            with gr.Row(elem_id="maps"):
                kept: dict[str, Any] = {"interactive": False, "show_label": False, "buttons": [], "format": "png"}
                maps = {}
                for name in shown.models:
                    with gr.Column(min_width=240):
                        gr.Markdown(f"**{html.escape(name)}** looks at")
                        maps[name] = gr.Image(label=name, **kept)
            share, times = gr.Markdown(elem_id="share"), gr.Markdown(elem_id="times")

    results = [*answers.values(), caption, words, *maps.values(), share, times, asked]

    def look(asked_now: tuple[Image.Image, Answered] | None, word: int | None) -> dict[Any, Any]:
        if asked_now is None or word is None:
            return {}
        tiles = looks(*asked_now, word)
        shares = "; ".join(f"{name} {100 * peak:.1f} %" for name, (_, peak) in tiles.items())
        told = f"Of the attention of **{asked_now[1].words[word]}**, the brightest cell gets: {shares}."
        return {share: told, **{maps[name]: _marked(tile) for name, (tile, _) in tiles.items()}}

    def ask(image_now: Any, text: str) -> dict[Any, Any]:
        answered = shown.ask(image_now, text)
        answered_about = load_image(image_now, text), answered
        choices = [(word, index) for index, word in enumerate(answered.words)]
        first = sharpest(answered)
        return {
            **{answers[name]: probs for name, probs in answered.answers.items()},
            **look(answered_about, first),
            words: gr.Radio(choices=choices, value=first),
            caption: answered.caption,
            times: _times(answered.milliseconds),
            asked: answered_about,
        }

    def choose(index: int) -> dict[Any, Any]:
        name = offered[index]
        [chosen] = shown.images_of([name])
        told = {question: shown.questions[name]} if name in shown.questions else {}
        assert shown.images is not None
        return {picture: _marked(_small(chosen, 480)), image: shown.images.value(name), **told}

    def upload(file: str | None) -> dict[Any, Any]:
        return {image: None if file is None else read_upload(file)}

    def forget(file: str | None) -> dict[Any, Any]:
        return {image: None}

    asking: dict[str, Any] = {"fn": _guarded(notice, ask), "inputs": [image, question], "outputs": [notice, *results]}
    # What was answered last stays in sight, and one mark turns, not one on each of a dozen parts.
    asking["show_progress_on"] = words
    gr.on([button.click, question.submit], **asking, api_name="ask")
    words.input(
        _guarded(notice, look), [asked, words], [notice, share, *maps.values()], api_name="look", show_progress="hidden"
    )
    picture.upload(_guarded(notice, upload), [picture], [notice, image], api_name=False)
    picture.clear(_guarded(notice, forget), [picture], [notice, image], api_name=False)
    if offered:
        chosen = _guarded(notice, choose)
        outputs = [notice, picture, image, question]

        def select(event: gr.SelectData) -> dict[Any, Any]:
            return chosen(event.index)

        gallery.select(select, None, outputs, api_name=False).then(**asking, api_name=False)

        # The page opens with an answer.
        page.load(lambda: chosen(0), None, outputs, api_name="open").then(**asking, api_name=False)


def _search_tab(gr: Any, shown: Demonstration, notice: Any) -> None:
    """A text, and the images that it finds."""
    with gr.Row():
        label = "Question to all images" if shown.ranks_answers else "Text"
        text = gr.Textbox(
            label=label, placeholder="is there a red circle?" if shown.ranks_answers else "a dog on a sofa"
        )
        answer = _answer_box(gr, shown)
        button = gr.Button("Search", variant="primary", min_width=120, scale=0)
    layout: dict[str, Any] = {"columns": 4, "height": "auto", "allow_preview": False, "buttons": []}
    gallery = gr.Gallery(show_label=False, elem_id="found", format="png", **layout)

    def search(wanted: str, of_answer: str) -> dict[Any, Any]:
        found = shown.search(wanted, "" if of_answer == _ANY else of_answer, _FOUND)
        pictures = [_marked(_small(one)) for one in shown.images_of([hit.image for hit in found])]
        captions = [f"{hit.image}: {hit.caption}" for hit in found]
        return {gallery: list(zip(pictures, captions, strict=True))}

    fn = _guarded(notice, search)
    gr.on([button.click, text.submit], fn, [text, answer], [notice, gallery], api_name="search")


def _answer_box(gr: Any, shown: Demonstration) -> Any:
    """Which answer images are ranked by: to choose where there are few, to write where there are many."""
    labels = list(shown.models[shown.name].config.id2label.values())
    if shown.ranks_answers and len(labels) <= _MOST_ANSWERS_LISTED:
        return gr.Dropdown([_ANY, *labels], value=_ANY, label="Rank by the probability of")
    return gr.Textbox(label="Rank by the probability of this answer", visible=shown.ranks_answers)


def _marked(image: Image.Image) -> Image.Image:
    """The image with a name of its own: gradio writes equal ones into one file, anew, while others read it."""
    image.info["shown"] = uuid.uuid4().hex
    return image


def _small(image: Image.Image, side: int = _THUMBNAIL) -> Image.Image:
    """An image to show: enlarged by a whole factor, not smoothed, or scaled down."""
    factor = side / max(image.size)
    if factor < 1:
        image = image.copy()
        image.thumbnail((side, side))
        return image
    factor = max(1, round(factor))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _times(milliseconds: dict[str, float]) -> str:
    if not milliseconds:
        return ""
    rows = [f"| {name} | {value:.2f} |" for name, value in milliseconds.items()]
    return "\n".join(["| this question, timed just now | ms |", "|---|---:|", *rows])
