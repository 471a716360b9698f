"""A frozen image tower run once for each image: what it gave is kept, and taken when the same pixels come again."""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class VisionCache:
    """Stands in place of a frozen tower's `forward`, and keeps what it gives, image by image, until memory is full.

    Kept are results of the weights as they are: changed ones, and another number format, are run anew. Images come in
    batches of those that are missing, so a result is the tower's own up to the rounding of another batch.

    Args:
        tower: whose images are the first axis of all tensors that it takes and gives, or the first two of those taken.
        limit_mb: memory for results in MB (1e6 bytes), on the tower's device.

    Attributes:
        run_images: images that the tower was run for.

    Example:
        >>> tower = nn.Conv2d(3, 2, 4).requires_grad_(False)
        >>> cache, images = VisionCache(tower, limit_mb=1.0), torch.randn(5, 3, 4, 4)
        >>> torch.equal(tower(images), tower(images)), cache.run_images
        (True, 5)
    """

    def __init__(self, tower: nn.Module, limit_mb: float):
        self._tower, self._run = tower, tower.forward
        self._signature = inspect.signature(tower.forward)
        self._limit_bytes = self._free_bytes = limit_mb * 1e6
        self._weights: list[Any] = []
        self._kept: dict[tuple[Any, ...], list[Tensor]] = {}
        self._forms: dict[tuple[Any, ...], Any] = {}
        self._factors: dict[tuple[int, torch.device], Tensor] = {}
        self.run_images = 0
        tower.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Give what the tower gives."""
        # Trained after all: what it gives carries gradients.
        if any(weight.requires_grad for weight in self._tower.parameters()):
            return self._run(*args, **kwargs)
        given = self._signature.bind(*args, **kwargs).arguments
        for parameter in self._signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                given |= given.pop(parameter.name, {})
        tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        if tensors.get("pixel_values", torch.empty(0)).dim() == 5:
            tensors = {name: tensor.flatten(0, 1) for name, tensor in tensors.items()}
        others = {name: value for name, value in given.items() if name not in tensors}
        first = next(iter(tensors.values()))

        device = first.device.type
        number = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        asked = (first.device, number, str(sorted(others.items())))
        held = (*self._tower.parameters(), *self._tower.buffers())
        weights = [(one.dtype, one._version) for one in held]
        if weights != self._weights:
            self._weights, self._free_bytes = weights, self._limit_bytes
            self._kept.clear()

        names = [(*asked, *digest) for digest in self._digests(tensors.values())]
        missing = {name: at for at, name in enumerate(names) if name not in self._kept}
        new: dict[tuple[Any, ...], list[Tensor]] = {}
        if missing:
            chosen = torch.tensor(list(missing.values()), device=first.device)
            output = self._run(**{name: tensor[chosen] for name, tensor in tensors.items()}, **others)
            leaves, self._forms[asked] = tree_flatten(output)
            self.run_images += len(missing)
            for name, *row in zip(missing, *leaves, strict=True):
                new[name] = row
                size = sum(each.nbytes for each in row)
                if size <= self._free_bytes:
                    self._free_bytes -= size
                    # Of its own memory: a view would hold on to the batch.
                    self._kept[name] = [each.clone() for each in row]

        rows = [self._kept.get(name) or new[name] for name in names]
        return tree_unflatten([torch.stack(leaf) for leaf in zip(*rows, strict=True)], self._forms[asked])

    def _digests(self, tensors: Iterable[Tensor]) -> list[tuple[Any, ...]]:
        """Name each image by two random linear maps of its bits, 128 of them, on its device: no pixel is copied."""
        found: list[list[Tensor]] = []
        for tensor in tensors:
            flat = tensor.flatten(1).contiguous().view(_BITS[tensor.element_size()])
            key = (flat.shape[1], flat.device)
            if key not in self._factors:
                drawn = torch.Generator().manual_seed(flat.shape[1])
                factors = torch.randint(-(2**63), 2**63 - 1, (2, flat.shape[1]), generator=drawn)
                self._factors[key] = factors.bitwise_or_(1).to(flat.device)
            found.append([(self._factors[key] * row.long()).sum(1) for row in flat])
        shapes = tuple(tensor.shape[1:] for tensor in tensors)
        return [(shapes, *torch.cat(parts).tolist()) for parts in zip(*found, strict=True)]


def cache_images(body: Any, limit_mb: float, collator: Any, is_split: bool) -> None:
    """Run the frozen image tower of a dual encoder once for each image.

    Raises:
        ValueError: what it gives for an image changes, or it must run at every step.
    """
    part: Any = getattr(body, "vision_model", None)
    tower: Any = getattr(part, "model", part)
    augmentation = getattr(getattr(collator, "collator", collator), "augmentation", None)
    is_trained = tower is None or any(weight.requires_grad for weight in tower.parameters())
    wrong = {
        "the image tower is trained; set freeze_vision_tower": is_trained,
        "an augmentation makes another image each time; leave it out": augmentation is not None,
        "a model that is split over devices, or copied to several by one process, runs at every step": is_split,
    }
    if reason := next((reason for reason, is_so in wrong.items() if is_so), None):
        raise ValueError(f"vision_cache_mb is {limit_mb:g}, but {reason}.")
    if not isinstance(tower.forward, VisionCache):
        VisionCache(tower, limit_mb)


def check_frozen(args: Any, objective: Any) -> None:
    """Refuse frozen towers where attention inside them is compared.

    Raises:
        ValueError: both are, so that it learns nothing; or what a frozen one gives is kept, without its queries.
    """
    # Projections learn, and read what a tower gives.
    if objective.attention_projections is not None or not objective.attention_weight:
        return
    if args.freeze_text_tower and args.freeze_vision_tower:
        raise ValueError("both towers are frozen, so their attention learns nothing; set attention_weight to 0.")
    if args.vision_cache_mb:
        compares = f"attention_weight is {objective.attention_weight}, which compares queries inside the tower"
        raise ValueError(f"vision_cache_mb is set, but {compares}; set one of them to 0.")
