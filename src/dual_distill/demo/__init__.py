"""The demo: a page that shows what a checkpoint answers, where it looks and how fast, and the folder of its Space.

The page needs gradio (`pip install 'dual-distill[demo]'`), the rest does not.
"""

from .demonstration import Answered, DemoImages, Demonstration, Found
from .page import build_page, gradio, launch
from .scenes import generated_scenes
from .space import write_space
