"""The scenario that compares what a conversation shows with what its devices carried at that time."""

from collections.abc import Sequence

from benchmarks.conversation.chat_process import ChatProcess
from benchmarks.conversation.harness import REPLY_SECONDS, Exchange, Harness, Question, noise
from benchmarks.conversation.recordings import voiced_span
from benchmarks.report import Figure, median, percentile, spread

SPOKEN_MS = 100.0


def shown(harness: Harness, questions: Sequence[Question]) -> list[Figure]:
    """Measure when questions are shown, before their replies, and when sentences are reported as spoken."""
    return [_questions_first(harness, questions), *_sentences_spoken(harness, questions)]


def _questions_first(harness: Harness, questions: Sequence[Question]) -> Figure:
    """Count the questions whose transcript, or whose length where there is none, was shown before the reply began."""
    with harness.chat() as chat:
        exchanges = [harness.ask(chat, question.clip) for question in questions]
        leads = [_lead_ms(harness, chat, exchange) for exchange in exchanges]
    first = [lead for lead in leads if lead is not None and lead >= 0]
    words = f"{len(first)} of {len(leads)}; {median(first):.0f} ms earlier in the median, {min(first):.0f} ms at least"
    return Figure("question shown before the reply is heard", words, "all", len(first) == len(leads), spread(first))


def _lead_ms(harness: Harness, chat: ChatProcess, exchange: Exchange) -> float | None:
    """Return how long before the reply's first sound the question was shown; None where one of them is missing."""
    begun = harness.time_of(exchange.question.start)
    reply = voiced_span(harness.loudspeaker(exchange.question.start, exchange.stop))
    names = [name for name in ("transcript", "speech_ended") if chat.events(name)]
    moments = [event["at"] for event in chat.events(names[0]) if event["at"] > begun] if names else []
    if reply is None or not moments:
        return None
    first_shown: float = moments[0]
    return 1000 * (harness.time_of(exchange.question.start + reply[0]) - first_shown)


def _sentences_spoken(harness: Harness, questions: Sequence[Question]) -> list[Figure]:
    """Measure the time between the last sample of a sentence and the event that tells it was spoken.

    The recording is ahead of what the device reports; how far, a known signal tells before and after.
    """
    ahead = [harness.recording_ahead_ms()]
    apart = []
    with harness.fixed_reply_chat(noise(REPLY_SECONDS)) as chat:
        for question in questions:
            before = len(chat.events("sentence_spoken"))
            exchange = harness.ask(chat, question.clip)
            reply = voiced_span(harness.loudspeaker(exchange.question.start, exchange.stop))
            told = chat.events("sentence_spoken")[before:]
            if reply and told:
                apart.append(1000 * (told[0]["at"] - harness.time_of(exchange.question.start + reply[1])))
    ahead.append(harness.recording_ahead_ms())
    late = [each - median(ahead) for each in apart]
    p95 = percentile([abs(each) for each in late], 0.95)
    return [
        Figure(
            "the recording, ahead of the devices' own time",
            f"{ahead[0]:.0f} ms before, {ahead[1]:.0f} ms after",
            values={"all_ms": [round(each, 1) for each in ahead]},
        ),
        Figure(
            "sentence_spoken, less that, p95",
            f"{p95:.0f} ms (median {median(late):+.0f} ms) of {len(late)}; by the recording {median(apart):+.0f} ms",
            f"at most {SPOKEN_MS:.0f} ms",
            len(late) == len(questions) and p95 <= SPOKEN_MS,
            {**spread(late), "by_the_recording": spread(apart)},
        ),
    ]
