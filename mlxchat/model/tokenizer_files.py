"""The tokenizer files of a model folder: what they hold, and what is wrong with them.

The tokenizer itself, its special and end-of-turn tokens and the chat template text. The fast path
needs only the `tokenizers` library; folders without tokenizer.json go through mlx-lm's wrapper.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from mlxchat.errors import TokenizerError

# The names under which transformers hands special tokens to chat templates.
SPECIAL_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


@dataclass(frozen=True)
class TokenizerFiles:
    """What a model folder says of its tokenizer.

    Attributes:
        backend: With every token that only another file knows.
        special_tokens: By the names under which chat templates read them.
        eos_ids: Ids that end a turn.
        chat_templates: Texts by name.
        file: tokenizer.json, None where there is none.
    """

    backend: Backend
    special_tokens: dict[str, str]
    eos_ids: set[int]
    chat_templates: dict[str, str]
    file: Path | None


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Reads all that a model folder says of its tokenizer.

    Raises:
        TokenizerError: A file is missing or broken; the message names it.
    """
    config = _read_json(folder / "tokenizer_config.json")
    file = folder / "tokenizer.json"
    is_fast, fallback_special = file.is_file(), dict[str, str]()
    if is_fast:
        backend = _read_backend(file)
    else:
        backend, fallback_special = _load_through_mlx_lm(folder)
    special = fallback_special | _read_special_tokens(folder, config)
    try:
        _add_missing_tokens(backend, config, special)
    except (TypeError, ValueError, AttributeError) as error:
        raise TokenizerError(
            f"tokenizer_config.json in {folder} lists a broken token: {_one_line(error)}; "
            "fetch the model again"
        ) from error
    return TokenizerFiles(
        backend,
        special,
        _read_eos_ids(folder),
        read_chat_templates(folder),
        file if is_fast else None,
    )


def read_chat_templates(folder: Path) -> dict[str, str]:
    """Template texts by name; separate files win over the ones inside tokenizer_config.json."""
    templates: dict[str, str] = {}
    inside = _read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(inside, str):
        templates["default"] = inside
    elif isinstance(inside, list):
        for entry in inside:
            if isinstance(entry, dict) and isinstance(entry.get("template"), str):
                templates[str(entry.get("name"))] = entry["template"]
    files = {
        path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))
    }
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
        templates.clear()
    templates |= {name: _read_text(path) for name, path in files.items()}
    if not templates:
        legacy = _read_json(folder / "chat_template.json").get("chat_template")
        if isinstance(legacy, str):
            templates["default"] = legacy
    return templates


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(
            f"{path.name} in {path.parent} cannot be read: {_one_line(error)}; "
            "fetch the model again"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(
            f"{path.name} in {path.parent} is not valid JSON: {_one_line(error)}; "
            "fetch the model again"
        ) from error
    if not isinstance(value, dict):
        raise TokenizerError(
            f"{path.name} in {path.parent} is not a JSON object; fetch the model again"
        )
    return value


def _read_backend(path: Path) -> Backend:
    try:
        return Backend.from_file(str(path))
    except BaseException as error:
        # A panic of the Rust library is no Exception, and has no type that can be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(
            f"{path.name} in {path.parent} is broken: {_one_line(error)}; fetch the model again"
        ) from error


def _load_through_mlx_lm(folder: Path) -> tuple[Backend, dict[str, str]]:
    """The tokenizer of a folder without tokenizer.json, converted by mlx-lm and transformers."""
    names = ("tokenizer.model", "tekken.json", "vocab.json", "vocab.txt", "tiktoken.model")
    sources = (*names, *(path.name for path in folder.glob("*.tiktoken")))
    if not any((folder / name).is_file() for name in sources):
        raise TokenizerError(
            f"no tokenizer in {folder}: tokenizer.json is missing; fetch the model again"
        )
    try:
        from mlx_lm.tokenizer_utils import load

        wrapper = load(folder)
        special = {
            name: str(value)
            for name in SPECIAL_NAMES
            if (value := getattr(wrapper, name, None)) is not None
        }
        return wrapper.backend_tokenizer, special
    except Exception as error:
        raise TokenizerError(
            f"the tokenizer in {folder} cannot be converted: {_one_line(error)}; "
            "use a model with tokenizer.json"
        ) from error


def _token_string(value: object) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _read_special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The named special tokens, from the two files that may hold them."""
    legacy = _read_json(folder / "special_tokens_map.json")
    # transformers reads the older file first only where the newer one lists no added tokens.
    order = (legacy, config) if "added_tokens_decoder" in config else (config, legacy)
    tokens = {}
    for source in order:
        for name in SPECIAL_NAMES:
            token = _token_string(source.get(name))
            if token is not None:
                tokens[name] = token
    return {name: tokens[name] for name in SPECIAL_NAMES if name in tokens}


def _add_missing_tokens(
    backend: Backend, config: Mapping[str, Any], special: Mapping[str, str]
) -> None:
    """Add the tokens that only tokenizer_config.json knows, as transformers does."""
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    listed = config.get("added_tokens_decoder") or {}
    for _, fields in sorted(listed.items(), key=lambda item: int(item[0])):
        token = AddedToken(**fields)
        if repr(token) != repr(known.get(token.content)):
            backend.add_tokens([token])
            known[token.content] = token
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    values = extra.values() if isinstance(extra, Mapping) else extra
    names = [*special.values(), *(name for value in values if (name := _token_string(value)))]
    backend.add_tokens(
        [AddedToken(name, special=True) for name in dict.fromkeys(names) if name not in known]
    )


def _read_eos_ids(folder: Path) -> set[int]:
    """End-of-turn ids of config.json and generation_config.json: a number or a list in each."""
    config = _read_json(folder / "config.json")
    text_config = config.get("text_config")
    sources = [config, _read_json(folder / "generation_config.json")]
    if isinstance(text_config, dict):
        sources.append(text_config)
    found: set[int] = set()
    for source in sources:
        value = source.get("eos_token_id")
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, int) and not isinstance(item, bool) and item >= 0:
                found.add(item)
    return found
