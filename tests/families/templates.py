"""Compact templates of our own, in the style of families whose own are not to be had.

Control tokens, the shape of a turn and the peculiarities are the family's; the words are not.
"""

from __future__ import annotations

# Ids of calls are printed, and count the calls of the conversation. Results name them again.
KIMI_K2 = """\
{%- if tools -%}<|im_system|>tool_declare<|im_middle|>{{ tools | tojson }}<|im_end|>{%- endif -%}
{%- for m in messages -%}
{%- if m.role == 'system' -%}<|im_system|>system<|im_middle|>{{ m.content }}<|im_end|>
{%- elif m.role == 'user' -%}<|im_user|>user<|im_middle|>{{ m.content }}<|im_end|>
{%- elif m.role == 'assistant' -%}<|im_assistant|>assistant<|im_middle|>{{ m.content or '' }}
{%- if m.tool_calls -%}<|tool_calls_section_begin|>
{%- for call in m.tool_calls -%}
<|tool_call_begin|>{{ call.id }}<|tool_call_argument_begin|>
{%- if call.function.arguments is string -%}{{ call.function.arguments }}
{%- else -%}{{ call.function.arguments | tojson }}{%- endif -%}<|tool_call_end|>
{%- endfor -%}<|tool_calls_section_end|>{%- endif -%}<|im_end|>
{%- elif m.role == 'tool' -%}
<|im_system|>{{ m.name or 'tool' }}<|im_middle|>## Return of {{ m.tool_call_id }}{{ '\\n' }}
{{- m.content }}<|im_end|>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_assistant|>assistant<|im_middle|>{%- endif -%}
"""

# Control tokens that overlap: the start token `]~!b[` ends as the end token `[e~[` begins. Results
# that follow each other are one turn. Thinking before the last user's turn is dropped.
MINIMAX_M2 = """\
{{- ']~!b[]~b]system\\n' -}}
{%- if messages[0].role == 'system' -%}{{ messages[0].content }}{%- else -%}Be helpful.{%- endif -%}
{%- if tools -%}
{{- '\\n\\n# Tools\\n<tools>\\n' -}}
{%- for tool in tools -%}{{ '<tool>' + (tool.function | tojson) + '</tool>\\n' }}{%- endfor -%}
{{- '</tools>' -}}
{%- endif -%}
{{- '[e~[\\n' -}}
{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{ ']~b]user\\n' + m.content + '[e~[\\n' }}
{%- elif m.role == 'assistant' -%}
{{- ']~b]ai\\n' -}}
{%- if m.reasoning_content and loop.index0 > ns.last -%}
{{- '<think>\\n' + m.reasoning_content + '\\n</think>\\n\\n' -}}
{%- endif -%}
{{- m.content or '' -}}
{%- if m.tool_calls -%}
{{- '\\n<minimax:tool_call>\\n' -}}
{%- for call in m.tool_calls -%}
{{- '<invoke name="' + call.function.name + '">\\n' -}}
{%- for key, value in call.function.arguments.items() -%}
{{- '<parameter name="' + key + '">' + (value if value is string else value | tojson) -}}
{{- '</parameter>\\n' -}}
{%- endfor -%}
{{- '</invoke>\\n' -}}
{%- endfor -%}
{{- '</minimax:tool_call>' -}}
{%- endif -%}
{{- '[e~[\\n' -}}
{%- elif m.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{ ']~b]tool' }}{%- endif -%}
{{- '\\n<response>' + m.content + '</response>' -}}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{ '[e~[\\n' }}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ ']~b]ai\\n<think>\\n' }}{%- endif -%}
"""

# No line ends between turns; thinking is kept for the last turn only.
STEP3 = """\
{{- '<｜begin▁of▁sentence｜>' -}}
{%- if tools -%}
{{- '<|BOT|>system\\nTools:\\n' -}}
{%- for tool in tools -%}{{ tool | tojson + '\\n' }}{%- endfor -%}{{ '<|EOT|>' }}
{%- endif -%}
{%- for m in messages -%}
{%- if m.role == 'tool' -%}
{%- if messages[loop.index0 - 1].role != 'tool' -%}
{{- '<|BOT|>tool_response\\n<｜tool_outputs_begin｜>' -}}
{%- endif -%}
{{- '<｜tool_output_begin｜>' + m.content + '<｜tool_output_end｜>' -}}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}
{{- '<｜tool_outputs_end｜><|EOT|>' -}}
{%- endif -%}
{%- elif m.role == 'assistant' -%}
{{- '<|BOT|>assistant\\n' -}}
{%- if m.reasoning_content and loop.last -%}
{{- '<think>\\n' + m.reasoning_content + '\\n</think>\\n' -}}
{%- endif -%}
{{- m.content or '' -}}
{%- if m.tool_calls -%}
{{- '<｜tool_calls_begin｜>' -}}
{%- for call in m.tool_calls -%}
{{- '<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="' -}}
{{- call.function.name + '">' -}}
{%- for key, value in call.function.arguments.items() -%}
{{- '<steptml:parameter name="' + key + '">' + value + '</steptml:parameter>' -}}
{%- endfor -%}
{{- '</steptml:invoke><｜tool_call_end｜>' -}}
{%- endfor -%}
{{- '<｜tool_calls_end｜>' -}}
{%- endif -%}
{{- '<|EOT|>' -}}
{%- else -%}
{{- '<|BOT|>' + m.role + '\\n' + m.content + '<|EOT|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|BOT|>assistant\\n<think>\\n' }}{%- endif -%}
"""

# The generation prompt opens or closes the thinking; the past has only its close. Arguments are
# text.
DEEPSEEK_V31 = """\
{{- '<｜begin▁of▁sentence｜>' -}}
{%- set ns = namespace(system='', in_tool=false, waits=false) -%}
{%- for m in messages if m.role == 'system' -%}{%- set ns.system = ns.system + m.content -%}
{%- endfor -%}
{{- ns.system -}}
{%- if tools -%}
{{- '\\n\\n## Tools\\n' -}}
{%- for tool in tools -%}{{ tool.function | tojson + '\\n' }}{%- endfor -%}
{%- endif -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}
{{- '<｜User｜>' + m.content -}}
{%- set ns.waits = true -%}
{%- elif m.role == 'assistant' -%}
{%- if ns.waits -%}{{ '<｜Assistant｜></think>' }}{%- endif -%}
{%- set ns.waits = false -%}
{{- (m.content or '').split('</think>')[-1] -}}
{%- if m.tool_calls -%}
{{- '<｜tool▁calls▁begin｜>' -}}
{%- for call in m.tool_calls -%}
{{- '<｜tool▁call▁begin｜>' + call.function.name + '<｜tool▁sep｜>' -}}
{{- call.function.arguments + '<｜tool▁call▁end｜>' -}}
{%- endfor -%}
{{- '<｜tool▁calls▁end｜>' -}}
{%- endif -%}
{{- '<｜end▁of▁sentence｜>' -}}
{%- elif m.role == 'tool' -%}
{{- '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and ns.waits -%}
{{- '<｜Assistant｜>' + ('<think>' if thinking else '</think>') -}}
{%- endif -%}
"""

# The system prompt stays in front; roles take turns; ids of nine letters and digits.
MISTRAL_SMALL = """\
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}
{{- '[SYSTEM_PROMPT]' + messages[0].content + '[/SYSTEM_PROMPT]' -}}
{%- endif -%}
{%- if tools -%}{{ '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{ '[INST]' + m.content + '[/INST]' }}
{%- elif m.role == 'assistant' -%}
{{- m.content or '' -}}
{%- for call in m.tool_calls or [] -%}
{%- if call.id | length != 9 -%}
{{- raise_exception('Ids of tool calls have nine letters and digits.') -}}
{%- endif -%}
{{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' -}}
{%- set given = call.function.arguments -%}
{{- given if given is string else given | tojson -}}
{%- endfor -%}
{{- eos_token -}}
{%- elif m.role == 'tool' -%}
{%- if m.tool_call_id | length != 9 -%}
{{- raise_exception('Ids of tool results have nine letters and digits.') -}}
{%- endif -%}
{{- '[TOOL_RESULTS]' + m.content + '[/TOOL_RESULTS]' -}}
{%- endif -%}
{%- endfor -%}
"""

# A space on both sides of a reply, before its end token too; the system prompt is in the first
# turn.
LLAMA_2 = """\
{%- set system = messages[0].content if messages[0].role == 'system' else '' -%}
{%- for m in messages if m.role != 'system' -%}
{%- if m.role == 'user' -%}
{{- bos_token + '[INST] ' -}}
{%- if loop.first and system -%}{{ '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' }}{%- endif -%}
{{- m.content | trim + ' [/INST]' -}}
{%- elif m.role == 'assistant' -%}
{{- ' ' + m.content | trim + ' ' + eos_token -}}
{%- else -%}
{{- raise_exception('Only user and assistant roles are supported.') -}}
{%- endif -%}
{%- endfor -%}
"""

# No end token: the header of what comes next ends a turn. Arguments must be an object.
GLM_4_5 = """\
{{- '[gMASK]<sop>' -}}
{%- if tools -%}
{{- '<|system|>\\n# Tools\\n' -}}
{%- for tool in tools -%}{{ tool | tojson + '\\n' }}{%- endfor -%}
{%- endif -%}
{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}
{{- '<|user|>\\n' + m.content -}}
{{- '/nothink' if enable_thinking is defined and not enable_thinking -}}
{%- elif m.role == 'system' -%}{{ '<|system|>\\n' + m.content }}
{%- elif m.role == 'assistant' -%}
{{- '<|assistant|>' -}}
{%- if m.reasoning_content and loop.index0 > ns.last -%}
{{- '\\n<think>' + m.reasoning_content + '</think>' -}}
{%- else -%}{{ '\\n<think></think>' }}
{%- endif -%}
{{- '\\n' + m.content if m.content -}}
{%- for call in m.tool_calls or [] -%}
{{- '\\n<tool_call>' + call.function.name -}}
{%- for key, value in call.function.arguments.items() -%}
{{- '\\n<arg_key>' + key + '</arg_key>\\n<arg_value>' + value + '</arg_value>' -}}
{%- endfor -%}
{{- '\\n</tool_call>' -}}
{%- endfor -%}
{%- elif m.role == 'tool' -%}
{%- if messages[loop.index0 - 1].role != 'tool' -%}{{ '<|observation|>' }}{%- endif -%}
{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{{- '\\n<think></think>' if enable_thinking is defined and not enable_thinking -}}
{%- endif -%}
"""

# A turn ends with a token that follows closing words; calls and results have numbers.
KIMI_K3 = """\
{%- macro close(tag) -%}{{- '<|close|>' + tag + '<|sep|>' -}}{%- endmacro -%}
{%- macro ended() -%}{{- close('message') + '<|end_of_msg|>' -}}{%- endmacro -%}
{%- if tools -%}
{{- '<|open|>message role="system" type="tool-declare"<|sep|>' + (tools | tojson) + ended() -}}
{%- endif -%}
{%- set ns = namespace(calls=[]) -%}
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{{- '<|open|>message role="assistant"<|sep|><|open|>think<|sep|>' -}}
{{- m.reasoning_content or '' -}}
{{- close('think') + '<|open|>response<|sep|>' + (m.content or '') + close('response') -}}
{%- if m.tool_calls -%}
{%- set ns.calls = m.tool_calls -%}
{{- '<|open|>tools<|sep|>' -}}
{%- for call in m.tool_calls -%}
{{- '<|open|>call tool="' + call.function.name + '" index="' ~ loop.index ~ '"<|sep|>' -}}
{%- for key, value in call.function.arguments.items() -%}
{{- '<|open|>argument key="' + key + '" type="string"<|sep|>' + value + close('argument') -}}
{%- endfor -%}
{{- close('call') -}}
{%- endfor -%}
{{- close('tools') -}}
{%- endif -%}
{%- elif m.role == 'tool' -%}
{%- for call in ns.calls if call.id == m.tool_call_id -%}
{{- '<|open|>message role="tool" tool="' + call.function.name + '"<|sep|>' + m.content -}}
{%- endfor -%}
{%- else -%}
{{- '<|open|>message role="' + m.role + '"<|sep|>' + m.content -}}
{%- endif -%}
{{- ended() -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|open|>message role="assistant"<|sep|><|open|>think<|sep|>' -}}
{%- endif -%}
"""
