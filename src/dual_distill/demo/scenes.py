"""Images for a demo that was given none: generated scenes, as the quickstart's models know them."""

from dual_distill.data import decode_image, load_task

from .demonstration import DemoImages

# Not the quickstart's own seeds, so that hardly one of the scenes was trained on.
_SEED = 2112


def generated_scenes(number: int = 48) -> DemoImages:
    """Scenes with one question each, kinds of questions in turn.

    Example:
        >>> scenes = generated_scenes(2)
        >>> sorted(scenes.source) == sorted(scenes.questions), len(scenes.source)
        (True, 2)
    """
    rows = load_task("scenes", num_scenes={"test": number}, seed=_SEED)["test"]
    per_scene = len(rows) // number
    chosen = [rows[scene * per_scene + scene % per_scene] for scene in range(number)]
    images = {f"scene {index + 1}": decode_image(row["image"], index) for index, row in enumerate(chosen)}
    return DemoImages(images, {name: row["question"] for name, row in zip(images, chosen, strict=True)})
