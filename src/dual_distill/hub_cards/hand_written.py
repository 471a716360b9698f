"""A card and its hand-written part: what lies outside our two markers is a person's, and no push may lose it.

The first marker holds the digest of the hand-written text as it was when we last wrote the card. It tells who changed
that text
since: the copy beside the weights, the one on the Hub, or both.
"""

import hashlib
import re
from typing import Any, NamedTuple

import yaml

_BEGIN = re.compile(r"<!-- dual_distill card begins(?:, hand-written text: ([0-9a-f]{16}|none))? -->\n?")
_END = "<!-- dual_distill card ends -->"
_METADATA = re.compile(r"\A\s*---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)


class Card(NamedTuple):
    """A README taken apart.

    Attributes:
        metadata: of the block at its top.
        before: hand-written, above our part.
        after: hand-written, below it; all of a README without our part.
        digest: of the hand-written text when we last wrote it; None: we never did.
    """

    metadata: dict[str, Any]
    before: str
    after: str
    digest: str | None

    @property
    def hand_written(self) -> str:
        """Both hand-written parts, as one text."""
        return f"{self.before}\n{self.after}".strip()


def parse_card(readme: str, name: str = "README.md") -> Card:
    r"""Split a README into metadata and hand-written parts; our own part, which is written anew, is dropped.

    Args:
        readme: its text.
        name: what to call it in messages.

    Raises:
        ValueError: the metadata is no YAML mapping, or one of the two markers is missing.

    Example:
        >>> parse_card("---\nlicense: mit\n---\n# By hand\n")
        Card(metadata={'license': 'mit'}, before='', after='# By hand', digest=None)
    """
    readme = readme.replace("\r\n", "\n")
    metadata: Any = {}
    if found := _METADATA.match(readme):
        try:
            metadata = yaml.safe_load(found.group(1)) or {}
        except yaml.YAMLError as error:
            raise ValueError(
                f"the metadata at the top of {name} is no valid YAML ({error}); mend or delete it."
            ) from error
        if not isinstance(metadata, dict):
            raise ValueError(
                f"the metadata at the top of {name} is a {type(metadata).__name__}; write `key: value` lines."
            )
        readme = readme[found.end() :]
    begin, ends = _BEGIN.search(readme), readme.count(_END)
    if begin is None and not ends:
        return Card(metadata, "", readme.strip(), None)
    if begin is None or ends != 1 or len(_BEGIN.findall(readme)) != 1 or readme.index(_END) < begin.end():
        raise ValueError(
            f"{name} does not have our two markers once each and in order, so its hand-written part cannot be told "
            f"from ours; "
            f"put back '<!-- dual_distill card begins -->' and '{_END}', or delete everything between them, markers "
            f"too."
        )
    after = readme[readme.index(_END) + len(_END) :]
    return Card(metadata, readme[: begin.start()].strip(), after.strip(), begin.group(1) or "none")


def digest_of(text: str) -> str:
    """Return what the marker holds for a hand-written text: 16 hexadecimal digits, "none" for no text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16] if text else "none"


def choose(local: Card | None, remote: Card | None) -> Card | None:
    """Choose whose hand-written part goes on: the one that was changed since we last wrote the card.

    Args:
        local: the README beside the weights.
        remote: the README on the Hub.

    Raises:
        ValueError: both were changed, differently.

    Example:
        >>> online = parse_card("<!-- dual_distill card begins -->ours<!-- dual_distill card ends -->")
        >>> choose(parse_card("mine"), online).after
        'mine'
    """
    if local is None or remote is None or local.hand_written == remote.hand_written:
        return local or remote
    if not local.hand_written and local.digest in (None, "none"):
        return remote
    if digest_of(remote.hand_written) == (remote.digest or "none"):
        return local  # nobody touched the Hub's since we wrote it
    if digest_of(local.hand_written) == local.digest:
        return remote
    raise ValueError(
        "the README beside the weights and the one on the Hub both have hand-written text, and it differs; copy into "
        "the local "
        "one what should stay, make the Hub's hand-written part equal or empty, and push again."
    )


def render_card(metadata: dict[str, Any], generated: str, kept: Card | None) -> str:
    """Return a README: metadata, the hand-written text above, our part between its markers, the text below."""
    block = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=1000).strip()
    digest = digest_of(kept.hand_written if kept else "")
    ours = f"<!-- dual_distill card begins, hand-written text: {digest} -->\n{generated.strip()}\n{_END}"
    parts = [f"---\n{block}\n---", kept.before if kept else "", ours, kept.after if kept else ""]
    return "\n\n".join(part for part in parts if part) + "\n"


__all__ = ["Card", "choose", "digest_of", "parse_card", "render_card"]
