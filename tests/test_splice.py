"""Generated ids in a text: a memory of earlier calls changes nothing."""

from hypothesis import given
from hypothesis import strategies as st
from template_fixtures import examples, stand_in
from tiny import bounded

from mlxchat.chat.splice import Segment, SegmentEncoder, Span, count_common_ids
from mlxchat.engine.token_ids import count_common

TOKENIZER = stand_in(next(e for e in examples() if e.name == "exact"))
# Pieces of one length: two conversations of them often have spans in common, and part anywhere.
SHOWN, BETWEEN = st.sampled_from(("the", "\nth")), st.sampled_from((" a", "th", "e\n"))


@st.composite
def conversations(draw: st.DrawFn) -> tuple[str, list[Span]]:
    """A text, some of whose pieces were generated with a piece of what follows them."""
    text, spans = draw(BETWEEN), []
    for owner in range(draw(st.integers(0, 4))):
        shown, more = draw(SHOWN), draw(st.sampled_from(("", "e", " ")))
        ids = TOKENIZER.encode(shown + more, is_continuation=True)
        spans.append(Span(len(text), len(text) + len(shown), owner, tuple(ids)))
        text += shown + draw(BETWEEN)
    return text, spans


@given(calls=st.lists(conversations(), min_size=2, max_size=6))
@bounded(max_examples=300)
def test_an_encoder_with_a_memory_encodes_as_a_new_one(
    calls: list[tuple[str, list[Span]]],
) -> None:
    """What the last call did is gone on with only where this one would do the same."""
    encoder = SegmentEncoder(TOKENIZER)
    before: list[Segment] = []
    for text, spans in calls:
        segments = encoder.encode(text, spans)
        assert segments == SegmentEncoder(TOKENIZER).encode(text, spans)
        ids, earlier = ([i for s in part for i in s.token_ids] for part in (segments, before))
        assert count_common_ids(segments, before) == count_common(ids, earlier)
        before = segments


def test_a_longer_text_changes_how_the_last_span_is_encoded() -> None:
    """The text after a span decides whether its ids fit, so the last one is looked at again."""
    encoder = SegmentEncoder(TOKENIZER)
    ids = tuple(TOKENIZER.encode("the\n", is_continuation=True))
    span = Span(2, 5, 0, ids)
    assert Segment(ids, 0) not in encoder.encode(" athe", [span])
    assert encoder.encode(" athe\n", [span])[1] == Segment(ids, 0)
    assert Segment(ids, 0) not in encoder.encode(" athe", [span])
