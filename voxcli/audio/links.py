"""Tells how the next recording begins in a file into which several were joined."""

import re

# By the demuxers that stop before the next recording (`cat a.wav b.wav`).
LINKS = {
    "aiff": re.compile(rb"FORM....AIF[CF]", re.DOTALL),
    "amr": re.compile(rb"#!AMR(-WB)?\n"),
    "asf": re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c"),
    "au": re.compile(rb"\.snd\x00\x00"),
    "caf": re.compile(rb"caff\x00\x01\x00\x00desc"),
    "flv": re.compile(rb"FLV\x01[\x01\x04\x05]\x00\x00\x00\x09"),
    "matroska": re.compile(rb"\x1a\x45\xdf\xa3"),
    "mov": re.compile(rb"\x00\x00\x00.ftyp", re.DOTALL),
    "ogg": re.compile(rb"OggS\x00[\x02\x06]"),  # A page with the flag "beginning of stream" (RFC 3533, section 6).
    "tta": re.compile(rb"TTA1[\x01-\x03]\x00"),
    "voc": re.compile(rb"Creative Voice File\x1a"),
    "w64": re.compile(rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"),
    "wav": re.compile(rb"(RIFF|RIFX|RF64)....WAVE", re.DOTALL),
    "wv": re.compile(rb"wvpk"),
}
LINK_BYTES = 24  # The longest match.
SEARCHED_BYTES = 1 << 24  # How far behind the last packet the next recording is searched, past indexes and tags.
