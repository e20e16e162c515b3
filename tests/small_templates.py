"""Small chat templates of our own, one for each way in which real templates treat a history."""

_HEAD = "{% for m in messages %}"
_TAIL = "{% endfor %}{% if add_generation_prompt %}"
_END = "{% endif %}"
_CHATML_TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
_LAST_USER = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
)
_STRIPPED_TURN = (
    "{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% if m.reasoning_content and (KEEP or loop.index0 > ns.last) %}"
    "{{ '<think>\n' + m.reasoning_content.strip('\n') + '\n</think>\n\n' }}{% endif %}"
    "{{ m.content.lstrip('\n') + '<|im_end|>\n' }}{% else %}" + _CHATML_TURN + "{% endif %}"
)
_ALTERNATE = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
)

EXACT = _HEAD + _CHATML_TURN + _TAIL + "{{ '<|im_start|>assistant\n' }}" + _END
INSERTED_BLANK = (
    _HEAD
    + "{% if m.role == 'system' %}{{ m.content + '\n\n' }}"
    + "{% elif m.role == 'user' %}{{ 'USER: ' + m.content + '\n' }}"
    + "{% else %}{{ 'ASSISTANT: ' + m.content + eos_token + '\n' }}{% endif %}"
    + _TAIL
    + "{{ 'ASSISTANT:' }}"
    + _END
)
STOP_NOT_RENDERED = (
    _HEAD
    + "{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}"
    + _TAIL
    + "{{ '<|assistant|>' }}"
    + _END
)
THINK_STRIPPED = (
    _LAST_USER
    + _HEAD
    + _STRIPPED_TURN.replace("KEEP", "false")
    + _TAIL
    + "{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and not enable_thinking %}"
    + "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    + _END
)
THINK_OPENED = (
    _LAST_USER
    + _HEAD
    + _STRIPPED_TURN.replace("KEEP", "preserve_thinking")
    + _TAIL
    + "{{ '<|im_start|>assistant\n<think>\n' }}"
    + _END
)
THINK_KEPT = (
    "{{ bos_token }}"
    + _HEAD
    + "{{ '<|turn|>' + m.role + '\n' }}{% if m.reasoning_content %}"
    + "{{ '<seed:think>' + m.reasoning_content|trim + '</seed:think>\n' }}{% endif %}"
    + "{{ m.content|trim + '<|end|>' }}"
    + _TAIL
    + "{{ '<|turn|>assistant\n' }}"
    + _END
)
THINK_AS_CONTENT = (
    "{{ bos_token }}"
    + _HEAD
    + "{% if m.role == 'system' %}{{ '[SYS]' + m.content + '[/SYS]' }}"
    + "{% elif m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}"
    + "{% else %}{% if not m.content %}{{ raise_exception('an answer must not be empty') }}"
    + "{% endif %}{{ m.content + eos_token }}{% endif %}{# [THINK] [/THINK] #}"
    + "{% endfor %}"
)
HARMONY = (
    "{{ '<|start|>system<|message|>Today is ' + strftime_now('%Y-%m-%d') + '<|end|>' }}"
    + _HEAD
    + "{% if m.role == 'assistant' %}"
    + "{% if m.thinking and loop.last and not add_generation_prompt %}"
    + "{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
    + "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}"
    + "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}"
    + _TAIL
    + "{{ '<|start|>assistant' }}"
    + _END
)
SYSTEM_MOVES = (
    "{{ bos_token }}{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    + "{% for m in (messages[1:] if system else messages) %}"
    + "{% if m.role == 'user' %}{{ '[INST] ' + (system + '\n\n' if loop.last and system else '')"
    + " + m.content + '[/INST]' }}{% else %}{{ ' ' + m.content|trim + eos_token }}{% endif %}"
    + "{% endfor %}"
)
REWRITE = (
    _HEAD
    + "{{ m.role|capitalize + ': ' + m.content.strip().replace('\r\n', '\n').replace('\n\n', '\n')"
    + " + '\n\n' }}"
    + _TAIL
    + "{{ 'Assistant:' }}"
    + _END
)
TRIMMED = (
    "{{ bos_token }}"
    + _HEAD
    + "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + _ALTERNATE
    + "{{ '<start>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content|trim"
    + " + '<|end|>\n' }}"
    + _TAIL
    + "{{ '<start>model\n' }}"
    + _END
)
SYSTEM_DROPPED = (
    _HEAD
    + "{% if m.role != 'system' %}"
    + _CHATML_TURN
    + "{% endif %}"
    + _TAIL
    + "{{ '<|im_start|>assistant\n' }}"
    + _END
)
SHOWN_TWICE = (
    "{{ messages[-1].content|length }}"
    + _HEAD
    + _CHATML_TURN
    + "{% if m.role == 'assistant' %}{{ '(' + m.content[:3] + ')' }}{% endif %}"
    + _TAIL
    + "{{ '<|im_start|>assistant\n' }}"
    + _END
)
DATED = (
    "{{ 'Today: ' + strftime_now('%d %B %Y') + '\n' }}{%- for m in messages %}\n"
    + "    {%- if m.role == 'assistant' %}{% generation %}\n"
    + "{{ '<|assistant|>\n' + m.content + eos_token + '\n' }}\n"
    + "{% endgeneration %}{% else %}{{ '<|' + m.role + '|>\n' + m.content + '\n' }}{% endif %}\n"
    + "    {%- if loop.index0 > 90 %}{% break %}{% endif %}{%- endfor %}\n"
    + "{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

SMALL_TEMPLATES = {
    "exact": EXACT,
    "inserted-blank": INSERTED_BLANK,
    "stop-not-rendered": STOP_NOT_RENDERED,
    "think-stripped": THINK_STRIPPED,
    "think-opened": THINK_OPENED,
    "think-kept": THINK_KEPT,
    "think-as-content": THINK_AS_CONTENT,
    "harmony": HARMONY,
    "system-moves": SYSTEM_MOVES,
    "rewrite": REWRITE,
    "trimmed": TRIMMED,
    "system-dropped": SYSTEM_DROPPED,
    "shown-twice": SHOWN_TWICE,
    "dated": DATED,
}
