"""What a trainer knows of its run, for the record beside the weights."""

import json
import platform
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = ("dual-distill", "torch", "transformers", "datasets")
# Where things lie on one machine, and what the Hub client is told: no part of what was done.
_NOT_SETTINGS = {"data", "init_from", "init_revision", "output_dir", "run_name", "teacher", "teacher_revision"}
_HUB_PREFIXES = ("hub_", "push_to_hub", "logging_dir", "report_to", "disable_tqdm", "resume_from")


def differing_fields(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    """Return the fields of dataclasses that differ from their defaults, as JSON; paths and Hub settings are left out.

    Args:
        pairs: `(arguments, default arguments)` of one class each.

    Example:
        >>> from dual_distill.hub_cards import DataOrigin
        >>> differing_fields((DataOrigin("a", revision="b"), DataOrigin("a")))
        {'revision': 'b'}
    """
    found = {
        one.name: getattr(arguments, one.name)
        for arguments, defaults in pairs
        for one in fields(arguments)
        if one.name not in _NOT_SETTINGS
        and not one.name.startswith(_HUB_PREFIXES)
        and getattr(arguments, one.name) != getattr(defaults, one.name)
    }
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return plain


def versions_now() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on, where installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
