"""What commands are called in other programs: other names of ours, and where the rest is here.

The names are those of gmlx, aichat, ollama, llm and llama-cli: fingers know them.
"""

ALIASES = {
    "?": "help",
    "quit": "exit",
    "q": "exit",
    "bye": "exit",
    "clear": "reset",
    "new": "reset",
    "regen": "retry",
    "regenerate": "retry",
    "read": "file",
    "sessions": "resume",
    "thinking": "think",
    "sampling": "params",
}
# Commands with no twin here, and what does their work.
_INSTEAD = {
    "audio": "text models alone run here; /file attaches texts",
    "delete": "`mlxchat history delete ID` deletes conversations, /drop discards attachments",
    "history": "/tree shows this conversation, /resume lists the others, /search finds words",
    "image": "text models alone run here; /file attaches texts",
    "info": "/show, /stats, /model and /params show what there is to know",
    "keys": "/help keys lists the keys",
    "list": "/model lists the models",
    "load": "/file PATH attaches a file, /resume ID takes up a chat, /model NAME loads a model",
    "load-session": "/resume ID takes up another conversation",
    "macro": "system prompts can have names: /help system",
    "memory": "/stats shows the memory, /cache what the KV cache holds",
    "multi": 'begin with """, end with """; Alt-Enter adds a line',
    "prompt": "/system TEXT sets the system prompt, /system @NAME one of the settings",
    "rag": "`mlxchat embed FILES --query TEXT` finds passages",
    "reasoning": "/think sets it, Ctrl-O shows the last",
    "render": "/markdown on or off",
    "role": "/system @NAME takes a system prompt of the settings",
    "session": "/resume takes up another conversation, /save names this one",
    "shell": "!cmd runs a command and attaches its output",
    "stop": "/set stop TEXT ends answers before TEXT",
    "thinking-budget": "/think budget N",
    "verbose": "/timing on reports after each answer",
}


def find_instead(name: str, argument: str) -> str:
    """Returns what to write in the place of a command that other programs have, or nothing.

    Args:
        name: Of the command, in lower case.
        argument: What followed it.
    """
    from mlxchat.cli.parameters import ALIASES as OTHER_NAMES
    from mlxchat.cli.parameters import NAMES

    if name in _INSTEAD:
        return _INSTEAD[name]
    setting = name.replace("_", "-")
    setting = OTHER_NAMES.get(setting, setting)
    return f"write /set {setting} {argument or 'VALUE'}" if setting in NAMES else ""
