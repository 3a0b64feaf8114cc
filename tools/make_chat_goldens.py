"""Makes tests/data/chat_goldens.json: what transformers renders from templates that use all of its conventions."""

from __future__ import annotations

import json
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Wetter für <Ort> & mehr", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "enum": ["Köln", "東京"]}}, "required": ["city"]}}}  # fmt: skip
CONVERSATIONS = {
    "plain": [{"role": "user", "content": "Hi <b>'you'</b> & \"me\""}],
    "turns": [
        {"role": "system", "content": "  Be brief.\n"},
        {"role": "user", "content": "Bonjour, ça va ? 😀"},
        {"role": "assistant", "content": "<think>hm\n</think>\n\nOui."},
        {"role": "user", "content": "{{ 1 + 1 }} {% raw %}"},
    ],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": " two"}]}],
}
TEMPLATES = {
    "blocks": """{{ bos_token }}
{%- for m in messages %}
    {%- if m.role == 'system' %}
[SYS]{{ m['content'] | trim }}[/SYS]
    {%- elif m.content is string %}
    {{ '<' + m.role + '>' }}{{ m.content }}{{ eos_token }}
    {%- else %}
        {%- for part in m.content if part.type == 'text' %}
{{ loop.index }}/{{ loop.length }}:{{ part.text }}{{ ';' if not loop.last }}
        {%- endfor %}
    {%- endif %}
{%- endfor %}
{% if add_generation_prompt %}
<assistant>
{% endif %}""",
    "trimmed": "  {% set x = 1 %}\n  {% if x %}\n    yes\n  {% endif %}\n{# note #}\nend{{ '\\n' }}\n",
    "namespace": """{% set ns = namespace(last=-1, seen=[]) %}{% for m in messages %}{% if m.role == 'user' %}
{% set ns.last = loop.index0 %}{% set ns.seen = ns.seen + [m.role ~ loop.index] %}{% endif %}{% endfor %}
{{ ns.last }} {{ ns.seen | join(', ') }} {{ messages[ns.last]['role'] | upper }} {{ messages[::-1][0].role }}""",
    "loopcontrols": """{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}
{{ m.role }}{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}""",
    "generation": """{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}
{% else %}[{{ m.role }}]{% endif %}{% endfor %}""",
    "macros": """{% macro turn(m, end='|') %}{{ caller() if caller else '' }}{{ m.role }}{{ end }}{% endmacro %}
{% for m in messages %}{{ turn(m) }}{% call turn(m, end=';') %}>{% endcall %}{% endfor %}""",
    "tools": """{% if tools %}{% for t in tools %}{{ t | tojson }}
{{ t.function | tojson(indent=2) }}{{ t.function.parameters.properties.items() | list | length }}
{% for k, v in t.function.parameters.properties | items %}{{ k }}={{ v.enum | map('upper') | join('/') }}{% endfor %}
{% endfor %}{% endif %}{{ documents is none }} {{ enable_thinking is defined }} {{ missing is defined }}{{ missing }}""",
    "filters": """{% set s = messages[0].content %}{% if s is string %}{{ s | length }} {{ s | replace('i', 'o') }}
{{ s.split(' ')[0] }} {{ s.startswith('H') }} {{ s | e }} {{ s[:3] }} {{ s.strip().upper() | lower | title }} {{ s | first }}
{{ '%s-%03d' | format(s[:2], 7) }} {{ '%s' % s[:1] }} {{ 'a\nb' | indent(2) }} {{ ['b', 'a'] | sort | join }}
{{ '{}{:>4}'.format(1, 2) }}
{{ messages | map(attribute='role') | list }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ messages | rejectattr('role', 'in', ['user']) | list | tojson }} {{ [3, 1, 2] | sum }}
{{ {'b': 1, 'a': [none, true]} | tojson(sort_keys=True) }}
{{ 7 // 2 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ -7 % 3 }}
{{ 1 ~ 'x' ~ none }} {{ 'x' in s }} {{ 1.25 | round(1) }} {{ x | default('d') }}{% endif %}""",
}


def main() -> None:
    goldens = []
    for name, template in TEMPLATES.items():
        for title, messages in CONVERSATIONS.items():
            for prompt in (False, True):
                variables = {**SPECIAL, "enable_thinking": True}
                rendered, _ = render_jinja_template(
                    [messages], tools=[TOOL], chat_template=template, add_generation_prompt=prompt, **variables
                )
                goldens.append({"template": name, "conversation": title, "prompt": prompt, "rendered": rendered[0]})
    data = {
        "special": SPECIAL,
        "tools": [TOOL],
        "conversations": CONVERSATIONS,
        "templates": TEMPLATES,
        "goldens": goldens,
    }
    path = Path(__file__).parent.parent / "tests" / "data" / "chat_goldens.json"
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
