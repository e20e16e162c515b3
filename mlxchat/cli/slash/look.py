"""The slash commands that look inside the model while the conversation goes on."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from mlxchat.cli.failures import stoppable
from mlxchat.cli.slash.registry import Context, command
from mlxchat.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from mlxchat.chat.live_text import LiveText

T = TypeVar("T")


@command("lens", "[TOKEN]", "Show what each layer would have said instead.")
def lens(context: Context, argument: str) -> None:
    """Reads the last answer, or one of its words, with the logit lens."""
    from mlxchat.cli.inspect import render_live

    def work(live: "LiveText") -> render_live.LensShown:
        from mlxchat.lens.logit_lens import read_lens

        chosen = _find(live, argument) if argument else range(live.start, live.end)
        positions = [p - 1 for p in chosen]
        targets = [live.token_ids[p] for p in chosen]
        ids = live.token_ids[: chosen[-1]]
        view = read_lens(live.model, ids, positions=positions, targets=targets, edits=live.taps)
        names = {i for layer in view.layers for r in layer for i, _ in r.top}
        texts = {i: live.tokenizer.token_text(i) for i in {*names, *targets}}
        return render_live.LensShown(view, texts)

    shown = _look(context, work)
    _draw(context, lambda console: render_live.make_lens_view(shown, console.width))


@command("attention", "[TOKEN]", "Show what the model looked at when it wrote a word.")
def attention(context: Context, argument: str) -> None:
    """Shows what was looked at for the last answer's last word, or for a word of it."""
    _explain(context, argument, shows_lens=False)


@command("why", "[TOKEN]", "Show which tokens and which layer led to a word.")
def why(context: Context, argument: str) -> None:
    """Explains a word of the last answer; without one the word that took most work."""
    _explain(context, argument, shows_lens=True)


@command("confidence", "", "Show how sure the last answer was, token by token.")
def confidence(context: Context, argument: str) -> None:
    """Shows the probability that each token had when it was chosen."""
    from mlxchat.cli.inspect import render_live

    def work(live: "LiveText") -> render_live.Sure:
        from mlxchat.lens.live import read_confidence

        readings = read_confidence(live.model, live.token_ids, live.start, edits=live.taps)
        names = {i for r in readings for i, _ in r.top}
        texts = {i: live.tokenizer.token_text(i) for i in names}
        return render_live.Sure(tuple(readings), live.texts()[live.start :], texts)

    sure = _look(context, work)
    _draw(context, lambda console: render_live.make_confidence_view(sure, console.width))


def _explain(context: Context, argument: str, *, shows_lens: bool) -> None:
    from mlxchat.cli.inspect import render_live

    def work(live: "LiveText") -> render_live.Explained:
        from mlxchat.lens.live import explain

        position = _choose(live, argument, hardest=shows_lens)
        found = explain(live.model, live.token_ids, position, edits=live.taps)
        ids = {i for layer in found.lens.layers for r in layer for i, _ in r.top}
        texts = {i: live.tokenizer.token_text(i) for i in ids}
        return render_live.Explained(found, live.texts(), texts, live.start)

    found = _look(context, work)
    make = render_live.make_why_view if shows_lens else render_live.make_attention_view
    _draw(context, lambda console: make(found, console))


def _choose(live: "LiveText", argument: str, *, hardest: bool) -> int:
    """Returns the token to explain: the one that is named, or one with letters."""
    if argument:
        return _find(live, argument)[0]
    texts = live.texts()
    answer = range(live.start, live.end)
    words = [p for p in answer if any(c.isalnum() for c in texts[p])] or list(answer)
    if not hardest:
        return words[-1]
    from mlxchat.lens.live import hardest as find_hardest

    return find_hardest(live.model, live.token_ids, live.start, words, edits=live.taps)


def _find(live: "LiveText", word: str) -> tuple[int, ...]:
    """Returns the positions of a word, in the answer where it stands there.

    Raises:
        UsageError: It is not in the conversation, or nothing stands before it.
    """
    from mlxchat.cli.words import find_word

    try:
        found = find_word(live.tokenizer, live.token_ids[live.start : live.end], word)
        return tuple(p + live.start for p in found)
    except UsageError:
        try:
            positions = find_word(live.tokenizer, live.token_ids, word)
        except UsageError:
            raise UsageError(
                f"the conversation has no {word!r}; name a word of the last answer"
            ) from None
    if positions[0] == 0:
        raise UsageError(f"{word!r} is the first token, nothing led to it; name a later word")
    return positions


def _look(context: Context, work: "Callable[[LiveText], T]") -> T:
    job = context.session.look(work)
    try:
        with stoppable():
            return job.result()
    finally:
        job.cancel()


def _draw(context: Context, make: "Callable[[Console], Sequence[RenderableType]]") -> None:
    """Shows a view: on the screen where there is one, else as text."""
    if context.screen is not None:
        context.screen.view(make)
        return
    from io import StringIO

    from mlxchat.cli.inspect.paint import make_console

    text = StringIO()
    console = make_console(text, width=80, colours=False)
    console.print(*make(console), sep="\n")
    context.say(text.getvalue().rstrip("\n"))
