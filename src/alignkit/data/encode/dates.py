"""A chat template that asks for the date, which is another text each day, is given one date for good."""

from __future__ import annotations

import json
import re
from datetime import datetime

_ASKS = "strftime_now"  # what transformers calls the function
_CODE = re.compile(r"%[-_]?[a-zA-Z]")
_PERCENT = "\ue000"  # stands for "%%" while the codes are replaced


def with_date(jinja: str, now: datetime) -> str:
    """Return the template with the date written into it; one that does not ask, or has its date, as it is.

    Args:
        jinja: the chat template.
        now: what it sees as the time.
    """
    fixed = f"macro {_ASKS}("
    if _ASKS not in jinja or fixed in jinja:
        return jinja
    codes = sorted(set(_CODE.findall(jinja)))
    values = [["%%", _PERCENT], *([code, now.strftime(code)] for code in codes), [_PERCENT, "%"]]
    replaced = "{%- set ns.text = ns.text.replace(code, value) -%}"
    return (  # on line one, lines keep their numbers; the plus leaves a line break that follows where it is
        f"{{% {fixed}format) -%}}{{%- set ns = namespace(text=format) -%}}"
        f"{{%- for code, value in {json.dumps(values)} -%}}{replaced}{{%- endfor -%}}"
        f"{{{{- ns.text -}}}}{{%- endmacro +%}}{jinja}"
    )
