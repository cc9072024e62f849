"""A template from a stranger is bounded in time and memory, and renders what transformers renders."""

import resource
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from alignkit.data.encode import sandbox
from alignkit.data.encode.sandbox import bounded, is_marked, render_chat
from alignkit.errors import TemplateError

HI = [{"role": "user", "content": "hi"}]


def render(jinja: str) -> str:
    return render_chat(jinja, HI, variables={}, add_generation_prompt=False)[0]


@pytest.mark.parametrize(
    "jinja",
    [
        "{{ 'a' * 50000000000 }}",
        "{{ 'a' | center(5000000000) }}",
        "{{ '%5000000000d' % 1 }}",
        "{% set ns = namespace(s='aaaaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    ],
)
def test_a_template_that_wants_the_memory_of_the_machine_is_refused(
    jinja: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "MAX_BYTES", 2**28)
    with (
        pytest.raises(TemplateError, match=r"asks for more than 0\.25 GiB of memory: do you trust its source"),
        bounded(),
    ):
        render(jinja)


@pytest.mark.parametrize(
    "jinja",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ (9 ** (9 ** 9)) > 1 }}",  # computed while Jinja folds constants, where it swallows exceptions
    ],
)
def test_a_template_that_never_ends_is_refused(jinja: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.2)
    with pytest.raises(TemplateError, match="renders for more than 0 s"), bounded():
        render(jinja)


def test_a_page_of_a_million_letters_is_refused() -> None:
    with pytest.raises(TemplateError, match="writes 20,000,000 characters: do you trust its source"):
        render("{{ 'a' * (20000000 * messages | length) }}")


def test_a_long_conversation_is_not_a_large_template() -> None:
    text = "x" * 3_000_000
    rendered, _ = render_chat(
        "{{ messages[0].content }}", [{"role": "user", "content": text}], variables={}, add_generation_prompt=False
    )
    assert rendered == text


def test_limits_end_with_the_rendering() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)
    with pytest.raises(TemplateError), bounded():
        render("{{ 'a' * 50000000000 }}")
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_other_threads_can_render() -> None:
    def in_thread() -> str:
        with bounded():
            return render("{{ messages[0].content }}")

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(in_thread).result() == "hi"


def test_blocks_that_touch_are_one() -> None:
    jinja = "a[bc][d]e[f]".replace("[", "{% generation %}").replace("]", "{% endgeneration %}")
    assert render_chat(jinja, HI, variables={}, add_generation_prompt=False) == ("abcdef", [(1, 4), (5, 6)])


@pytest.mark.parametrize(
    ("jinja", "marked"),
    [("{% generation %}", True), ("{%- generation -%}", True), ("{% if add_generation_prompt %}", False), ("", False)],
)
def test_markers_are_seen(jinja: str, marked: bool) -> None:
    assert is_marked(jinja) is marked
