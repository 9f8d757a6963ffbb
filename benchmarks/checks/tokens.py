"""Step b: all levels give the same tokens, and quantized weights those of the same weights dequantized."""

from benchmarks.baselines import free_memory
from benchmarks.checks.findings import Notebook
from benchmarks.checks.lab import FORMATS, LEVELS, Lab, clip
from benchmarks.checks.reference import Agreement, Reference
from benchmarks.checks.warm_up import DEFAULT, two_turns
from voxcli.engines.voxtral.device.formats import Format

CLIPS = [clip(0), clip(1)]  # of `two_turns`


def check(lab: Lab, note: Notebook) -> None:
    """Compare the replies of each level, then of each format."""
    _compare_levels(lab, note)
    for form in FORMATS[1:]:
        try:
            _compare_format(lab, note, form)
        except Exception as error:  # noqa: BLE001 - the other formats are worth trying
            note.failed(f"{form}: loaded and answered", error)


def _compare_levels(lab: Lab, note: Notebook) -> None:
    dtype, _ = lab.need(lab.checkpoint, FORMATS[0], lab.sizes.context)
    reference = Reference(lab.checkpoint, lab.device, dtype)
    plain = lab.replies.get(LEVELS[0])
    for level in (*LEVELS, DEFAULT):
        if (replies := lab.replies.get(level)) is None:
            note.require(f"{level}: tokens", False, "no reply from step a", "a reply")
            continue
        _record(note, f"{level}: tokens against transformers' forward pass", reference.agreement(CLIPS, replies))
        if plain and level != LEVELS[0]:
            _compare_ids(lab, note, level, plain, replies)
    del reference
    free_memory(lab.device)


def _compare_ids(lab: Lab, note: Notebook, level: str, plain: list[list[int]], replies: list[list[int]]) -> None:
    """Compare ids one by one; in bfloat16, they differ where two logits are as good as equal."""
    pairs = [pair for one, other in zip(plain, replies, strict=True) for pair in zip(one, other, strict=False)]
    equal = sum(one == other for one, other in pairs)
    what, measured = f"{level}: tokens that are those of the plain pass", f"{equal} of {len(pairs)}"
    if lab.emulated:
        note.require(what, equal == len(pairs), measured, "all, in float32")
    else:
        note.measured(what, measured, equal=equal, compared=len(pairs))


def _compare_format(lab: Lab, note: Notebook, form: Format) -> None:
    context = lab.sizes.small_context
    dtype, _ = lab.need(lab.checkpoint, form, context)
    with lab.engine(note.message, quantize=form, context_tokens=context) as engine:
        note.measured(f"{form}: level that works", engine.acceleration)
        replies = [answer.ids for answer in two_turns(engine)]
    reference = Reference(lab.checkpoint, lab.device, dtype)
    reference.quantize(form)
    _record(note, f"{form}: tokens against the dequantized weights", reference.agreement(CLIPS, replies))
    del reference
    free_memory(lab.device)


def _record(note: Notebook, what: str, found: Agreement) -> None:
    note.require(what, found.holds, found, f"gaps of at most {found.tolerance:g}", worst=found.worst, equal=found.equal)
