"""Which files of a folder may be published: each is looked into first, and none may give anything away.

The list says what goes; whatever else lies in the folder stays and is named. Nothing here reads a tensor: of weights
only the header, which is JSON, so a truncated file or a pickle under another name is refused.

What must not leave this machine (tokens, keys, its paths, the name of its user) is looked for by two measures. Files
that programs write may hold no absolute path and no user name at all. In prose, vocabularies and code those could be
words like others, so only what cannot be one is refused: tokens, keys, and paths into a home.
"""

import contextlib
import fnmatch
import getpass
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import get_token
from safetensors import SafetensorError, safe_open

from dual_distill import sealed

from .architectures import CONFIG, PROCESSOR_CONFIG, SENTENCE_CONFIG, Architecture, as_json, read_architecture
from .run_record import CACHED, RUN_FILE, RunRecord, origin_of, read_run, weights_digest

CARD = "README.md"
PICTURE = "attention.png"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
_MODULES = "modules.json"
_JSON = (
    *(PROCESSOR_CONFIG, RUN_FILE, "generation_config.json", "preprocessor_config.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
    # for sentence-transformers
    *(_MODULES, SENTENCE_CONFIG, "sentence_bert_config.json"),
)
# Lists of words, any of which could be somebody's name.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")
PUBLISHED = (CONFIG, *WEIGHTS, *_JSON, *_VOCABULARIES, "recipe.yaml", PICTURE, ADAPTER_CONFIG, ADAPTER_WEIGHTS)
"""Names and patterns of the files that a push sends, beside the card, and with `--with-code` the code."""

# What a run is resumed from; sent only where that is asked for (`hub_strategy`).
_STATE = (
    *("optimizer.*", "scheduler.*", "scaler.*", "rng_state*"),
    *("trainer_state.json", "objective.*", "*_stream_*.json"),
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib")
_TRAINING_ARGUMENTS = "training_args.bin"  # may hold tokens: never sent
# Kind of number -> its bits, and those of its exponent.
_EXPONENTS = {"F64": ("<u8", 0x7FF << 52), "F32": ("<u4", 0xFF << 23), "F16": ("<u2", 0x1F << 10)}
_EXPONENTS["BF16"] = ("<u2", 0xFF << 7)
_PNG_BEGINS = b"\x89PNG\r\n\x1a\n"

# What the rules of detect-secrets leave out.
_TOKENS = (
    r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|\bgithub_pat_\w{20,}"
    r"|\bsk-[A-Za-z0-9_-]{20,}"  # OpenAI, Anthropic
    r"|\bAIza[\w-]{35}|\bya29\.[\w-]{20,}"  # Google
    r"|\bnpm_[A-Za-z0-9]{36}|_authToken=[^\s$]+"
    r"|\baws_secret_access_key\b\W{1,5}[\w+/]{40}"
)
# These guess: any address of version numbers is one of a machine.
_GUESSES = {"Public IP (ipv4)"}
_HOME_PATH = r"(?:(?<![\w.:/])|(?<=file://))/(?:home|Users|root)/[\w.+-]+|\b[A-Za-z]:(?:\\+|/)Users(?:\\+|/)[\w.+-]+"
# Begins where no word, address or other path goes on; two parts at least, so that "and/or" and "/" pass.
_ABSOLUTE_PATH = r"(?<![\w:/.<~)\]])/(?:[\w.+-]+/)+[\w.+-]+|\b[A-Za-z]:\\+[\w.+-]+"
# Names that say nothing about anyone and are words of their own; paths into their homes are found all the same.
_NOBODY = {"admin", "build", "docker", "jovyan", "nobody", "root", "runner", "ubuntu", "user", "vscode"}
_SHORTEST_NAME = 3


@dataclass(frozen=True)
class Checkpoint:
    """What of a folder goes to the Hub, and what is known about it.

    Attributes:
        files: name -> content, or the path of weights, which are too large to hold.
        left_out: what else is in the folder, by name; folders end in "/".
        state: files that a run is resumed from.
        config: content of config.json; empty of an adapter.
        architecture: class of the model, of an adapter that of its base.
        parameters: how many the weights hold.
        adapter: content of adapter_config.json with name and commit of the base; None: a whole model.
        run: the record of the run that gave these weights; None: not known.
        is_stale: whether there is a record, but of other weights.
        readme: the card that lies there.
    """

    files: dict[str, bytes | Path]
    left_out: tuple[str, ...]
    state: tuple[Path, ...]
    config: dict[str, Any]
    architecture: Architecture
    parameters: int
    adapter: dict[str, Any] | None
    run: RunRecord | None
    is_stale: bool
    readme: str | None


def collect(folder: str | Path) -> Checkpoint:
    """Read what may be published from the folder of a checkpoint.

    Args:
        folder: as `save_pretrained` or a Trainer wrote it; a whole model, or an adapter of peft.

    Raises:
        ValueError: it is no folder of a checkpoint; a pickle lies in it; a file is damaged or not what its name says;
            an adapter's base is not on the Hub.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is not a folder; give the one that a run or `save_pretrained` wrote.")
    is_adapter, is_model = (folder / ADAPTER_CONFIG).is_file(), (folder / CONFIG).is_file()
    if not is_adapter and not is_model:
        raise ValueError(f"{str(folder)!r} has no {CONFIG}, so it holds no checkpoint; give the one that a run wrote.")
    if is_adapter and is_model:
        way_out = "a model and an adapter, and whoever loads it gets either; keep them apart"
        raise ValueError(f"{str(folder)!r} has {CONFIG} and {ADAPTER_CONFIG}, {way_out}.")

    # Names first, then what the files hold; `run.json` may be missing, and is checked as it is read.
    sealed.verify(folder, *(name for name in PUBLISHED if name != RUN_FILE))
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    published, state, pickles = (
        [path for path in paths if path.is_file() and is_one_of(path.name, patterns)]
        for patterns in (PUBLISHED, _STATE, _PICKLES)
    )
    if refused := [path.name for path in pickles if path not in state and path.name != _TRAINING_ARGUMENTS]:
        way_out = "which runs code on whoever loads it; save the model as safetensors and delete the file"
        raise ValueError(f"{refused[0]} in {str(folder)!r} is a pickle, {way_out}.")
    # Weights may lie on another disk, and the Hub's cache holds links alone.
    links = [path.name for path in paths if path.is_symlink() and path.suffix != ".safetensors"]
    if not CACHED.fullmatch(str(folder.absolute())) and (followed := {*links} & {CARD, *(it.name for it in published)}):
        raise ValueError(f"{min(followed)} in {str(folder)!r} is a symbolic link; put the file itself there.")
    staying = [path for path in paths if path not in published and path.name != CARD]
    left_out = [f"{path.name}/" if path.is_dir() else path.name for path in staying]

    _check_weights(folder, {path.name for path in published}, is_adapter)
    headers = {path.name: _read_header(path) for path in published if path.suffix == ".safetensors"}
    holders: dict[str, str] = {}
    for file, (shapes, _) in headers.items():
        for tensor in shapes:
            if holders.setdefault(tensor, file) != file:
                both = f"{holders[tensor]} and {file} both hold {tensor}"
                raise ValueError(f"{both}, and whoever loads them gets either; delete what is left of an earlier save.")
    parameters = sum(math.prod(shape) for shapes, _ in headers.values() for shape in shapes.values())
    files = {path.name: path if path.suffix == ".safetensors" else _checked(path) for path in published}

    config, adapter = sealed.read_json(folder / (ADAPTER_CONFIG if is_adapter else CONFIG)), None
    if is_adapter:
        name, adapter = _pinned_adapter(config)
        files[ADAPTER_CONFIG], config = as_json(adapter), {}
    else:
        [name] = config.get("architectures") or [""]
        # Neither where it was loaded from, nor a promise of code that is not sent.
        kept = {key: value for key, value in config.items() if key not in ("_name_or_path", "auto_map")}
        files[CONFIG], config = (files[CONFIG] if kept == config else as_json(kept)), kept

    # A record is of no use where the weights have changed since: none of its numbers is about these.
    run, card = read_run(folder), folder / CARD
    is_stale = run is not None and run.weights not in (None, weights_digest(folder))
    known = (config, read_architecture(name), parameters, adapter, None if is_stale else run, is_stale)
    readme = card.read_text(encoding="utf-8") if card.is_file() else None
    return Checkpoint(files, tuple(left_out), tuple(state), *known, readme)


def is_one_of(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a file name is one of these, patterns among them."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _checked(path: Path) -> bytes:
    """Return the content of a small file that is what its name says."""
    content = path.read_bytes()
    if path.name == _MODULES:
        json.loads(content)  # a list
    elif path.suffix == ".json":
        sealed.read_json(path)
    elif path.suffix == ".png" and not content.startswith(_PNG_BEGINS):
        raise ValueError(f"{path.name} is no PNG image; write it again or delete it.")
    elif path.suffix != ".png":
        try:
            content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path.name} is no text in UTF-8 ({error}); write it again or delete it.") from error
    return content


def _check_weights(folder: Path, names: set[str], is_adapter: bool) -> None:
    """Refuse a folder without weights, or without a shard that its index names."""
    wanted, way_out = {WEIGHTS[0]}, "so it holds no weights; give the folder of a finished run"
    if is_adapter:
        wanted, way_out = {ADAPTER_WEIGHTS}, "the adapter's weights; save it with `save_pretrained`"
    elif (folder / WEIGHTS[2]).is_file():
        weight_map = sealed.read_json(folder / WEIGHTS[2]).get("weight_map")
        wanted = set(weight_map.values()) if isinstance(weight_map, dict) else {"shards"}
        way_out = f"which {WEIGHTS[2]} names; save the checkpoint again"
    if absent := sorted(wanted - names):
        raise ValueError(f"{str(folder)!r} has no {absent[0]}, {way_out}.")


def _read_header(path: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Return the shapes of the tensors of a safetensors file, and its metadata; refuse a damaged file."""
    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_slice(name).get_shape() for name in list(file.keys())}, file.metadata() or {}
    except SafetensorError as error:
        reason = f"is no safetensors file, or truncated or damaged ({error}); save or fetch it again"
        raise ValueError(f"{path.name} {reason}.") from error


def check_finite(path: Path) -> None:
    """Refuse a safetensors file, of a valid header, with a number that is NaN or infinite: its exponent is all ones."""
    with path.open("rb") as file:
        begin = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(begin - 8))
    for name, tensor in header.items():
        bits, exponent = _EXPONENTS.get(tensor.get("dtype"), ("<u1", 0))
        start, stop = tensor.get("data_offsets", (0, 0))
        values = np.fromfile(path, bits, (stop - start) // np.dtype(bits).itemsize, offset=begin + start)
        if exponent and (values & exponent == exponent).any():
            broken = "is not finite: a run that went wrong wrote it, and nothing was sent"
            raise ValueError(f"{name} in {path.name} {broken}; take an earlier checkpoint.")


def _pinned_adapter(config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the class of an adapter's base, and its configuration with name and commit of the base in it."""
    base_class = (config.get("auto_mapping") or {}).get("base_model_class")
    if not isinstance(base_class, str):
        way_out = "save it with peft, from a model of this package and without a task_type"
        raise ValueError(f"{ADAPTER_CONFIG} does not say which class its base is (auto_mapping); {way_out}.")

    # A folder of the Hub's cache stands for the repository that it came from; any other folder is here alone.
    given = config.get("base_model_name_or_path") or ""
    if not given or (Path(given).is_dir() and not CACHED.fullmatch(given)):
        what = "has a base model that is no repository of the Hub" if given else "names no base model"
        way_out = "push the base first and train from there, or `merge_and_unload` and push the whole"
        raise ValueError(f"{ADAPTER_CONFIG} {what}, and nobody else could load the adapter; {way_out}.")

    origin, targets = origin_of(given, config.get("revision")), config.get("target_modules") or []
    base = {"base_model_name_or_path": origin.name, "revision": origin.revision}
    return base_class, {**config, **base, "target_modules": targets if isinstance(targets, str) else sorted(targets)}


def refuse_leaks(files: Mapping[str, bytes | Path], public_names: tuple[str, ...] = ()) -> None:
    """Look through everything that would be sent; the answers of a head count as vocabulary.

    Args:
        files: name -> content, as in `Checkpoint`.
        public_names: `owner/name` of repositories that may be named.

    Raises:
        ValueError: a file gives something away; it is named, what it gives away is not repeated.
    """
    for path, content in files.items():
        name = Path(path).name  # what a run is resumed from lies in a folder there
        is_strict, answers = name.endswith((".json", ".yaml", ".safetensors")) and name not in _VOCABULARIES, ""
        if isinstance(content, bytes):
            text = content.decode("utf-8", errors="ignore")
        else:
            text = json.dumps(_read_header(content)[1]) if name.endswith(".safetensors") else ""
        if name == CONFIG:
            config = json.loads(text)
            answers = json.dumps([config.pop(key, None) for key in ("id2label", "label2id")], ensure_ascii=False)
            text = json.dumps(config, ensure_ascii=False, indent=2)

        leak = find_leak(text, strict=is_strict, public_names=public_names) or find_leak(answers, strict=False)
        if leak:
            raise ValueError(f"{path} holds {leak}, and nothing was sent; take it out, or write the file without.")


def find_leak(text: str, *, strict: bool, public_names: tuple[str, ...] = ()) -> str | None:
    """Return what a text gives away, in words and without repeating it; None when nothing was found.

    Args:
        text: what would be sent.
        strict: whether a program wrote it, see above.
        public_names: `owner/name` of repositories that may be named although the owner is the user.

    Example:
        >>> find_leak("path: /home/ada/runs/teacher", strict=True)
        "a path into a user's home, in line 1"
    """
    for public in public_names:
        text = text.replace(public, "")
    token, home = get_token(), str(Path.home())

    checks = [("the Hub token of this machine", re.escape(token))] if token else []
    checks += [("a token or private key", _TOKENS), ("a path into a user's home", _HOME_PATH)]
    # A home of one part, as root's is, could be a word: it counts where a path goes on.
    if len(home) > 1:
        checks.append(("a path into a user's home", rf"(?<![\w.:/]){re.escape(home)}/\w"))
    if strict:
        checks.append(("an absolute path of a machine", _ABSOLUTE_PATH))
        checks += [("the name of the user who runs this", rf"(?<!\w){re.escape(name)}(?!\w)") for name in _user_names()]

    for what, pattern in checks:
        if found := re.search(pattern, text):
            return f"{what}, in line {text.count(chr(10), 0, found.start()) + 1}"
    secret = _find_secret(text)
    return secret and f"a token or private key, in line {text.count(chr(10), 0, text.find(secret)) + 1}"


def _find_secret(text: str) -> str | None:
    """Return the first secret by the rules of detect-secrets that know a form; entropy and keywords only guess."""
    # Here, since a card needs none of it.
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    from detect_secrets.plugins.base import RegexBasedDetector

    kinds = get_mapping_from_secret_type_to_class()
    rules = [rule() for kind, rule in kinds.items() if issubclass(rule, RegexBasedDetector) and kind not in _GUESSES]
    return next((secret for rule in rules for secret in rule.analyze_string(text) if secret), None)


def _user_names() -> set[str]:
    """Names of who runs this process, without those that everyone has ("root") and those below three letters."""
    names = {Path.home().name}
    # Without an entry for this user, the home's name is all there is.
    with contextlib.suppress(ImportError, KeyError, OSError):
        names.add(getpass.getuser())
    return {name for name in names if len(name) >= _SHORTEST_NAME and name.lower() not in _NOBODY}
