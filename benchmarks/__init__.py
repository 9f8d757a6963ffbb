"""Developer tools that measure and check voxcli; they run from a checkout and are not part of the package.

python -m benchmarks.start      commands beside the time their libraries need: `--help`, `once`
python -m benchmarks.live       conversations, by recordings of their devices
python -m benchmarks.one_pass   one Voxtral pass beside transformers and the floors of the device
python -m benchmarks.batch      many clips answered together, and one after the other
python -m benchmarks.answers    spoken questions with accepted answers through any engine, beside the same as text
python -m benchmarks.misheard_words  what Whisper understands of a voice that reads texts with numbers and code
python -m benchmarks.gpu_check  everything that needs a GPU and no released weights
"""
