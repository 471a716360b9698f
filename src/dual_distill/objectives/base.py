"""The contract between an objective and whoever trains: what it compares, asks for, keeps and cites."""

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypedDict

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .losses.logits import check_positive

HARD_WEIGHTS = ("label_weight", "itc_weight")
"""Weights of losses that the student computes from labels, without a teacher."""


class Paper(NamedTuple):
    """Where a method was published, as a model card cites it.

    Attributes:
        method: what it distils, in a few words.
        title: of the paper.
        url: of the paper.
        bibtex: the entry that a reader copies.
        reference: authors, title and venue in one line of Markdown.
    """

    method: str
    title: str
    url: str
    bibtex: str
    reference: str


class Settings(TypedDict, total=False):
    """Arguments that all objectives of the package take, as they stand in `Objective`."""

    temperature: float
    layer_map: Mapping[int, int] | None
    relation_heads: int | None


class Objective(nn.Module):
    """What a student is trained on: `objective(student_outputs, teacher_view, batch)` gives named losses.

    A subclass names its weights, says in `forward` how each term is computed, and ends in `weighted`. Parameters are
    trained by the student's optimizer, gradients averaged over processes; the `state_dict` is saved in every
    checkpoint and restored bit by bit on resume.

    Args:
        weights: name of a weight -> number >= 0; each becomes an attribute, `NAME_weight` weighs the term `NAME_loss`.
        temperature: > 0, of soft labels.
        layer_map: student layer -> teacher layer of the attention term, negative counts from the last; None: last to
            last.
        relation_heads: heads over which attention is compared when widths or head counts differ; None: the models' own.
        may_be_idle: whether all weights may be 0.

    Attributes:
        paper: where the method was published; None: nowhere.
        attention_weight: weight of the attention term; 0: attention is not compared.
        interaction_attention_weight: weight of the attention of a student's interaction layers; 0: it is not compared.
        interaction_hidden_weight: weight of what comes out of a student's interaction layers; 0: it is not compared.
        soft_label_weight: weight of the teacher's soft labels; 0: the two models may have other labels.
        label_weight: weight of hard labels; 0: the student is not shown them.
        hidden_layers: student layer -> teacher layer of compared hidden states; empty: none are.
        hidden_sizes: width of student and teacher that the objective was built for; None: any.
        attention_projections: learned queries and keys of a student's final tokens, as `add_projections` of objectives
            with an attention term makes them; None: the student's own are compared.
        one_sequence: whether both models must read text and image as one sequence whose tokens are compared.

    Raises:
        ValueError: a weight is negative, all are 0, the temperature or relation_heads is not positive, or the layer map
            is empty.

    Example:
        >>> class LabelsAlone(Objective):
        ...     def forward(self, student_outputs, teacher_view, batch):
        ...         return self.weighted({"label_loss": student_outputs.loss})
        >>> import torch
        >>> from types import SimpleNamespace
        >>> LabelsAlone({"label_weight": 0.5})(SimpleNamespace(loss=torch.tensor(3.0)), None, {})["loss"]
        tensor(1.5000)
    """

    paper: ClassVar[Paper | None] = None
    attention_weight: float = 0.0
    interaction_attention_weight: float = 0.0
    interaction_hidden_weight: float = 0.0
    soft_label_weight: float = 0.0
    label_weight: float = 0.0
    hidden_sizes: tuple[int, int] | None = None
    one_sequence: bool = False
    state_file: ClassVar[str] = "objective.safetensors"
    """Name of the file in a checkpoint's folder that holds the state; absent where there is none."""

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        temperature: float = 1.0,
        layer_map: Mapping[int, int] | None = None,
        relation_heads: int | None = None,
        may_be_idle: bool = False,
    ):
        super().__init__()
        # A comparison from the inside: it is False for NaN too.
        in_range = all(weight >= 0 for weight in weights.values())
        if not in_range or not (may_be_idle or any(weights.values())):
            wanted = "numbers >= 0" if may_be_idle else "numbers >= 0, at least one above 0"
            raise ValueError(f"the weights are {dict(weights)}; give {wanted}.")
        check_positive(temperature=temperature, relation_heads=1 if relation_heads is None else relation_heads)

        self.weights = dict(weights)
        for name, weight in weights.items():
            setattr(self, name, weight)
        self.temperature = temperature
        self.relation_heads = relation_heads
        compares_attention = self.attention_weight or self.interaction_attention_weight
        self.layer_map = mapped_layers("layer_map", layer_map, compares_attention)
        self.hidden_layers: dict[int, int] = {}
        self.attention_projections: nn.ModuleDict | None = None

    @property
    def student_layers(self) -> list[int]:
        """Layers whose queries and keys the student must record, in order; empty without an attention term."""
        return list(self.layer_map) if self.attention_weight else []

    @property
    def teacher_layers(self) -> list[int]:
        """Layers whose queries and keys (or attentions) the teacher must give, in order."""
        return list(self.layer_map.values())

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with a teacher."""
        return any(weight for name, weight in self.weights.items() if name not in HARD_WEIGHTS)

    def student_requests(self, takes: Container[str]) -> dict[str, Any]:
        """Return the keyword arguments that make a student hand out what is compared.

        Args:
            takes: names of the parameters of its `forward`.
        """
        requests = self._requests(self.student_layers)

        # Those of two towers apart, since side by side they would be a copy.
        return requests | ({"join_states": False} if self.student_layers and "join_states" in takes else {})

    def teacher_requests(self, takes: Container[str]) -> dict[str, Any]:
        """Return the keyword arguments that make a teacher hand out what is compared.

        Args:
            takes: names of the parameters of its `forward`; a foreign teacher, which records nothing, is asked for its
                attentions.
        """
        if self.teacher_layers and "output_query_states" not in takes:
            return self._requests([]) | {"output_attentions": True}
        return self._requests(self.teacher_layers)

    def _requests(self, layers: list[int]) -> dict[str, Any]:
        """Ask for hidden states, where they are compared, and for queries and keys of the layers."""
        hidden = {"output_hidden_states": True} if self.hidden_layers else {}
        return hidden | ({"output_query_states": layers, "output_key_states": layers} if layers else {})

    def forward(self, student_outputs: Any, teacher_view: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compare one batch.

        Args:
            student_outputs: of the student's `forward`, called with `student_requests`.
            teacher_view: what the teacher shows of the same batch: `logits`, and of each mapped layer `query_states`
                and `key_states`, or `attentions`.
            batch: what the student read.

        Returns:
            Scalars: `loss`, which is minimized, and each term unweighted.
        """
        raise NotImplementedError

    def weighted(self, losses: Mapping[str, Tensor], start: Tensor | float = 0.0) -> dict[str, Tensor]:
        """Return the terms, and as `loss` their sum by weight.

        Args:
            losses: `NAME_loss` -> scalar.
            start: a loss that is weighed already and added to.
        """
        total: Any = start
        for name, loss in losses.items():
            total = total + self.weights[name.removesuffix("_loss") + "_weight"] * loss
        return {**losses, "loss": total}

    def finish_step(self) -> None:
        """Take note that the optimizer has made a step, so that what a step collected counts from the next on."""

    def save_state(self, folder: str | Path) -> None:
        """Write parameters and buffers into a checkpoint's folder; without any no file is left."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        if state:
            save_file(state, Path(folder, self.state_file))

    def load_state(self, folder: str | Path) -> None:
        """Read parameters and buffers from a checkpoint's folder, in place, so that an optimizer keeps its parameters.

        Raises:
            ValueError: the file is missing or damaged, or is that of another objective.
        """
        file = Path(folder, self.state_file)
        if not self.state_dict():
            return

        if not file.is_file():
            lacks = f"holds no {self.state_file}, but the objective has a state (a queue, a projection) to take up"
            way_out = "resume from a checkpoint of the same method, or start anew in another output_dir"
            raise ValueError(f"{str(folder)!r} {lacks}; {way_out}.")

        try:
            self.load_state_dict(load_file(file))
        except SafetensorError as error:
            raise ValueError(f"{str(file)!r} is damaged ({error}); resume from an earlier checkpoint.") from error
        except RuntimeError as error:
            # torch names what does not fit, in its last line.
            reason = str(error).splitlines()[-1].strip(" \t.")
            other = f"{str(file)!r} is of another objective than this run's ({reason})"
            raise ValueError(f"{other}; resume with the settings that the checkpoint was written with.") from error


def mapped_layers(name: str, layers: Mapping[int, int] | None, weight: float) -> dict[int, int]:
    """Student layer -> teacher layer of a term: last to last unless given, none where the term has no weight."""
    if layers is not None and not layers:
        raise ValueError(f"{name} is empty; map at least one student layer, or set the term's weight to 0.")
    return dict(layers or {-1: -1}) if weight else {}


def student_loss(student_outputs: Any) -> Any:
    """The loss that the student computed from labels."""
    if student_outputs.loss is None:
        raise ValueError("label_weight is above 0, but the batch has no labels; give labels or set it to 0.")
    return student_outputs.loss


def recorded_layer(outputs: Any, role: str, index: int) -> tuple[Any, Any]:
    """Queries and keys of the index-th layer that was asked for.

    Raises:
        ValueError: fewer layers were recorded.
    """
    queries, keys = getattr(outputs, "query_states", None) or (), getattr(outputs, "key_states", None) or ()
    if min(len(queries), len(keys)) <= index:
        has = f"the {role} recorded queries of {len(queries)} layers and keys of {len(keys)}"
        way_out = f"call it with output_query_states and output_key_states = {role}_layers"
        raise ValueError(f"{has}, the objective maps more; {way_out}.")
    return queries[index], keys[index]


def given_attention(outputs: Any, layer: int, relation_heads: int | None, num_tokens: int) -> Any:
    """Attention probabilities of a teacher that records no queries and keys, `(B * N, H, S, S)`.

    Raises:
        ValueError: it returned none, they cover other tokens, or relation heads are compared.
    """
    attentions = getattr(outputs, "attentions", None)
    if not attentions:
        needs = 'which needs attn_implementation="eager" (sdpa returns an empty tuple)'
        must = f"a foreign teacher must return attention probabilities, {needs}"
        raise ValueError(f"the teacher returned neither query_states nor attentions; {must}.")
    if relation_heads is not None:
        cannot = "the teacher returns attention probabilities, which cannot be split into other heads"
        way_out = "leave relation_heads out or use a teacher that returns queries and keys"
        raise ValueError(f"relation_heads is {relation_heads}, but {cannot}; {way_out}.")
    check_num_tokens("teacher", "attention", attentions[layer].shape[-1], num_tokens)
    return attentions[layer]


def check_num_tokens(role: str, what: str, found: int, expected: int) -> None:
    """Refuse states of another number of tokens than the student's batch has."""
    if found != expected:
        differ = f"the {role} has {what} of {found} tokens, the student's batch has {expected}"
        must = "both must read the same [text; image] tokens in the same order, padding included"
        raise ValueError(f"{differ}; {must}.")
