"""Our exceptions: each carries one line for the person and the exit code of the process.

A message says what was wrong, then what is allowed or what to try, parted by a semicolon. `cli/`
turns them into `Error: ...` on stderr; nothing else prints them.
"""


class MlxchatError(Exception):
    """Base of every error that a person can cause or meet.

    Args:
        message: One line: what was wrong; what is allowed or what to try.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class AttachError(MlxchatError):
    """Something cannot be attached to a message; the line stays so that it can be corrected."""


class UsageError(MlxchatError):
    """An option or argument has a value that is not allowed."""

    exit_code = 2


class BackendError(MlxchatError):
    """MLX itself cannot be imported or has no usable device."""


class SettingsError(MlxchatError):
    """The settings file cannot be read or holds a wrong value."""


class HistoryError(MlxchatError):
    """The history of conversations cannot be read or written, or lacks what was asked for."""


class HubError(MlxchatError):
    """A model could not be found in, or fetched from, the Hugging Face Hub."""


class ModelNotFoundError(MlxchatError):
    """No local folder, cached snapshot or Hub repository has this name."""


class CheckpointError(MlxchatError):
    """Weights or config of a model folder are missing, damaged or do not fit together."""


class UnsupportedModelError(MlxchatError):
    """The architecture is known neither to mlxchat nor to mlx-lm."""


class TokenizerError(MlxchatError):
    """The tokenizer files are missing, damaged or do not fit the model."""


class TemplateError(MlxchatError):
    """The chat template is broken or refuses this conversation."""


class ContextFullError(MlxchatError):
    """The prompt does not fit into the context window."""


class MemoryShortError(MlxchatError):
    """A turn would take more memory than is free."""
